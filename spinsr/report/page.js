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
    if (event.pointerType !== 'touch') follow(event);
  });
  stage.addEventListener('pointermove', (event) => {
    if (stage.classList.contains('held')) follow(event);
  });
  stage.addEventListener('pointerup', (event) => {
    if (stage.classList.contains('held')) follow(event);
  });
  stage.addEventListener('lostpointercapture', () => stage.classList.remove('held'));
  move(50);

  for (const select of viewer.querySelectorAll('select')) {
    select.addEventListener('change', () => show(select.dataset.side, select.selectedIndex));
    // What a reload would keep of the menus is not what is shown.
    show(select.dataset.side, select.selectedIndex);
  }
  maps.forEach((button, index) => {
    button.addEventListener('click', () => {
      const options = viewer.querySelector('select').length;
      show('right', options - maps.length + index);
      viewer.scrollIntoView({ block: 'nearest' });
    });
  });
}
