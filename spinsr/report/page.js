'use strict';

for (const viewer of document.querySelectorAll('.viewer')) {
  const stage = viewer.querySelector('.stage');
  const range = viewer.querySelector('input');
  const maps = viewer.closest('article').querySelectorAll('.maps button');
  // The pictures in the order of the menus; those of the maps are laid in when they are first asked for.
  const layers = [...stage.querySelectorAll('img')];

  const layer = (index) => {
    if (!layers[index]) {
      const source = maps[index - [...stage.querySelectorAll('img:not(.map)')].length].firstElementChild;
      layers[index] = source.cloneNode();
      layers[index].className = 'map';
      stage.prepend(layers[index]);
    }
    return layers[index];
  };

  const show = (side, index) => {
    stage.querySelector(`img.${side}`).classList.remove(side);
    layer(index).classList.add(side);
    viewer.querySelector(`select[data-side=${side}]`).selectedIndex = index;
  };

  const move = (percent) => {
    range.value = percent;
    stage.style.setProperty('--at', `${range.value}%`);
    range.setAttribute('aria-valuetext', `${Math.round(range.value)} % left picture`);
  };

  // The part that is shown: how much larger, and what of the pictures is in the middle, in [0, 1].
  const zoomer = viewer.querySelector('select[data-zoom]');
  let zoom = 1;
  let middle = [0.5, 0.5];

  const look = (factor, x, y) => {
    zoom = factor;
    middle = [x, y].map((at) => Math.min(Math.max(at, 0.5 / zoom), 1 - 0.5 / zoom));
    // The point that stays where it is while the pictures grow.
    const [fixedX, fixedY] = middle.map((at) => (zoom === 1 ? 0.5 : (at * zoom - 0.5) / (zoom - 1)));
    stage.style.setProperty('--zoom', zoom);
    stage.style.setProperty('--x', `${100 * fixedX}%`);
    stage.style.setProperty('--y', `${100 * fixedY}%`);
    stage.classList.toggle('zoomed', zoom > 1);
    zoomer.value = zoom;
  };

  const pan = (right, down) => look(zoom, middle[0] + right / zoom, middle[1] + down / zoom);

  zoomer.addEventListener('change', () => look(Number(zoomer.value), ...middle));
  stage.addEventListener('dblclick', (event) => {
    if (event.shiftKey) return;
    const { left, top, width, height } = stage.getBoundingClientRect();
    const x = middle[0] + ((event.clientX - left) / width - 0.5) / zoom;
    const y = middle[1] + ((event.clientY - top) / height - 0.5) / zoom;
    look(zoom < 8 ? 2 * zoom : 1, x, y);
    move(50);
  });
  range.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    if (!event.shiftKey || !step) return;
    event.preventDefault();
    pan(...step);
  });

  const follow = (event) => {
    const { left, width } = stage.getBoundingClientRect();
    move((100 * (event.clientX - left)) / width);
  };

  range.addEventListener('input', () => move(range.value));
  stage.addEventListener('pointerdown', (event) => {
    if (event.button) return;
    event.preventDefault();
    range.focus({ preventScroll: true });
    stage.setPointerCapture(event.pointerId);
    stage.classList.add('held');
    // A finger may be about to scroll: then the browser takes the pointer away.
    if (event.pointerType !== 'touch' && !event.shiftKey) follow(event);
  });
  stage.addEventListener('pointermove', (event) => {
    if (!stage.classList.contains('held')) return;
    if (event.shiftKey) pan(-event.movementX / stage.clientWidth, -event.movementY / stage.clientHeight);
    else follow(event);
  });
  stage.addEventListener('pointerup', (event) => {
    if (stage.classList.contains('held') && !event.shiftKey) follow(event);
  });
  stage.addEventListener('lostpointercapture', () => stage.classList.remove('held'));
  move(50);
  look(1, 0.5, 0.5);

  for (const select of viewer.querySelectorAll('select[data-side]')) {
    select.addEventListener('change', () => show(select.dataset.side, select.selectedIndex));
    // What a reload would keep of the menus is not what is shown.
    show(select.dataset.side, select.selectedIndex);
  }
  maps.forEach((button, index) => {
    button.addEventListener('click', () => {
      const options = viewer.querySelector('select[data-side]').length;
      show('right', options - maps.length + index);
      viewer.scrollIntoView({ block: 'nearest' });
    });
  });
}
