"""The report in headless Chromium: the slider, the menus, sizes of window, colours, and silence."""

import json

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait
from torch.utils.tensorboard import SummaryWriter

import spinsr
from spinsr import report

from ..tiny_benchmark import write_benchmark

SPIN = {'num_feat': 8, 'num_block': 1, 'qk_dim': 4, 'mlp_dim': 8, 'stoken_size': [4]}
# A child's whole name, and one that would end an attribute or a tag.
NAMES = {'a': (160, 240), 'b<i>"&': (90, 70)}

pytestmark = pytest.mark.browser


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp('browser')
    write_benchmark(folder / 'Mine', NAMES)
    with SummaryWriter(str(folder / 'log')) as writer:
        for step in range(5):
            writer.add_scalar('metrics/Mine/psnr', 28 + step, 1000 * step)
    path = folder / 'page.html'
    with pytest.MonkeyPatch.context() as context:
        context.setattr(report, 'COUNTED', (40, 64))  # for cells so small more takes long
        text = report.make_report(folder / 'Mine', spinsr.load('SPIN', 2, None, **SPIN), log=folder / 'log')
    path.write_text(text, encoding='utf-8')
    return path.as_uri()


@pytest.fixture
def show(chromium, page):
    """Opens the page in a window and a colour scheme, waits until it is loaded, and returns the browser."""

    def open_page(width=1280, scheme='light', touch=False):
        size = {'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': touch}
        chromium.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
        chromium.execute_cdp_cmd('Emulation.setTouchEmulationEnabled', {'enabled': touch})
        media = {'features': [{'name': 'prefers-color-scheme', 'value': scheme}]}
        chromium.execute_cdp_cmd('Emulation.setEmulatedMedia', media)
        for kind in ('browser', 'performance'):
            chromium.get_log(kind)  # what the page before has left
        chromium.get('about:blank')  # else the page of the last test can be taken for the loaded one
        chromium.get(page)
        loaded = 'return location.href === arguments[0] && document.readyState === "complete"'
        WebDriverWait(chromium, 30).until(lambda browser: browser.execute_script(loaded, page))
        return chromium

    return open_page


def first(browser, selector):
    return browser.find_element('css selector', selector)


def seen(browser, share):
    """Which picture is to be seen in the first slider, so far from its left edge."""
    return browser.execute_script(
        """const stage = document.querySelector('.stage');
        stage.scrollIntoView({block: 'center'});
        const {left, top, width, height} = stage.getBoundingClientRect();
        const found = document.elementsFromPoint(left + arguments[0] * width, top + 0.3 * height);
        return found.filter((one) => one.tagName === 'IMG').map((one) => one.alt).join();""",
        share,
    )


def drag(browser, start, end, kind='mouse'):
    """Presses on the first slider at a share of its width, and lets go at another."""
    stage = first(browser, '.stage')
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", stage)
    actions = ActionBuilder(browser, mouse=PointerInput(kind, kind), duration=50)
    # Offsets are counted from the middle.
    width = stage.size['width']
    pointer = actions.pointer_action.move_to(stage, round((start - 0.5) * width)).pointer_down()
    pointer.move_to(stage, round((end - 0.5) * width)).pointer_up()
    actions.perform()


def test_all_pictures_load(show):
    browser = show()
    widths = browser.execute_script("return [...document.querySelectorAll('img')].map((one) => one.naturalWidth)")
    assert len(widths) == 2 * (4 + 4) + 9 + 3
    assert min(widths) > 0


def test_slider_moves_by_pointer(show):
    browser = show()
    assert [seen(browser, 0.3), seen(browser, 0.7)] == ['a, bicubic', 'a, SPIN']
    drag(browser, 0.5, 0.8)
    assert [seen(browser, 0.7), seen(browser, 0.9)] == ['a, bicubic', 'a, SPIN']
    assert abs(float(first(browser, '.stage input').get_property('value')) - 80) <= 1
    # Where it is pressed it goes, and it follows only while it is held.
    drag(browser, 0.1, 0.1)
    ActionChains(browser).move_to_element(first(browser, '.stage')).perform()
    assert [seen(browser, 0.05), seen(browser, 0.15)] == ['a, bicubic', 'a, SPIN']


def test_slider_moves_by_finger(show):
    browser = show(360, touch=True)
    drag(browser, 0.5, 0.8, 'touch')
    assert [seen(browser, 0.7), seen(browser, 0.9)] == ['a, bicubic', 'a, SPIN']


def test_slider_moves_by_keyboard(show):
    browser = show()
    # The way of someone without a mouse: from the menu the next stop is the slider.
    first(browser, 'select[data-side=right]').send_keys(Keys.TAB)
    slider = browser.switch_to.active_element
    assert slider.get_attribute('aria-label') == 'Divider between the two pictures of a'
    assert browser.execute_script('return getComputedStyle(document.querySelector(".stage")).outlineStyle') == 'solid'
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).perform()
    assert slider.get_property('value') == '52'
    ActionChains(browser).send_keys(Keys.END).perform()
    assert [seen(browser, 0.02), seen(browser, 0.98)] == ['a, bicubic'] * 2
    assert slider.get_attribute('aria-valuetext') == '100 % left picture'
    ActionChains(browser).send_keys(Keys.HOME).perform()
    assert [seen(browser, 0.02), seen(browser, 0.98)] == ['a, SPIN'] * 2


@pytest.mark.parametrize('picture', ['HR', 'LR', 'superpixels', 'error of bicubic'])
def test_menus_choose_the_pictures(show, picture):
    browser = show()
    Select(first(browser, 'select[data-side=right]')).select_by_visible_text(picture)
    assert [seen(browser, 0.3), seen(browser, 0.7)] == ['a, bicubic', f'a, {picture}']
    Select(first(browser, 'select[data-side=left]')).select_by_visible_text(picture)
    assert [seen(browser, 0.3), seen(browser, 0.7)] == [f'a, {picture}'] * 2
    Select(first(browser, 'select[data-side=left]')).select_by_visible_text('SPIN')
    assert [seen(browser, 0.3), seen(browser, 0.7)] == ['a, SPIN', f'a, {picture}']


def test_lr_is_enlarged_without_interpolation(show):
    browser = show()
    style = 'return getComputedStyle(document.querySelector(`.stage img[alt="a, ${arguments[0]}"]`)).imageRendering'
    assert [browser.execute_script(style, name) for name in ('LR', 'SPIN')] == ['pixelated', 'auto']
    sides = 'const {naturalHeight, naturalWidth} = document.querySelector(`.stage img[alt="a, LR"]`);'
    assert browser.execute_script(f'{sides} return [naturalHeight, naturalWidth]') == [80, 120]


def shown_part(browser):
    """Left, top, width and height of what the first slider shows of its pictures, in shares of them."""
    return browser.execute_script(
        """const stage = document.querySelector('.stage').getBoundingClientRect();
        const image = document.querySelector('.stage img.left').getBoundingClientRect();
        return [(stage.left - image.left) / image.width, (stage.top - image.top) / image.height,
                stage.width / image.width, stage.height / image.height].map((one) => Math.round(1000 * one) / 1000);"""
    )


def test_zoom_enlarges_both_pictures_and_the_divider_stays(show):
    browser = show()
    Select(first(browser, 'select[data-zoom]')).select_by_visible_text('4×')
    assert shown_part(browser) == [0.375, 0.375, 0.25, 0.25]
    drag(browser, 0.5, 0.8)
    assert [seen(browser, 0.78), seen(browser, 0.82)] == ['a, bicubic', 'a, SPIN']
    # Without a mouse: Shift and the arrow keys move the part, up to the edge; the divider stays.
    slider = first(browser, '.stage input')
    slider.send_keys(Keys.SHIFT, Keys.ARROW_RIGHT, Keys.ARROW_UP)
    assert shown_part(browser) == [0.4, 0.35, 0.25, 0.25]
    slider.send_keys(Keys.SHIFT, *20 * [Keys.ARROW_RIGHT])
    assert shown_part(browser) == [0.75, 0.35, 0.25, 0.25]
    assert [seen(browser, 0.78), seen(browser, 0.82)] == ['a, bicubic', 'a, SPIN']
    Select(first(browser, 'select[data-zoom]')).select_by_visible_text('1×')
    assert shown_part(browser) == [0, 0, 1, 1]


def test_double_click_zooms_in_there(show):
    browser = show()
    stage = first(browser, '.stage')
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", stage)
    quarter = round(0.25 * stage.size['width'])
    ActionChains(browser).move_to_element_with_offset(stage, quarter, 0).double_click().perform()
    left, top, width, _ = shown_part(browser)
    assert (round(left, 2), round(top, 2), width) == (0.5, 0.25, 0.5)
    assert Select(first(browser, 'select[data-zoom]')).first_selected_option.text == '2×'
    assert [seen(browser, 0.48), seen(browser, 0.52)] == ['a, bicubic', 'a, SPIN']
    # Shift and drag moves the pictures with the pointer.
    actions = ActionChains(browser).move_to_element(stage).key_down(Keys.SHIFT).click_and_hold()
    actions.move_by_offset(quarter, 0).release().key_up(Keys.SHIFT).perform()
    assert abs(shown_part(browser)[0] - 0.375) < 0.01
    assert [seen(browser, 0.48), seen(browser, 0.52)] == ['a, bicubic', 'a, SPIN']


def test_maps_go_into_the_slider(show):
    browser = show()
    first(browser, '.maps button[data-layer="error of SPIN"]').click()
    assert [seen(browser, 0.3), seen(browser, 0.7)] == ['a, bicubic', 'a, error of SPIN']
    assert Select(first(browser, 'select[data-side=right]')).first_selected_option.text == 'error of SPIN'


@pytest.mark.parametrize('width', [360, 768, 1280])
def test_nothing_is_wider_than_the_window(show, width):
    browser = show(width, touch=width == 360)
    assert browser.execute_script('return document.documentElement.scrollWidth') == width
    right = """return Math.max(...[...document.querySelectorAll('main *:not(.box)')]
        .map((one) => one.getBoundingClientRect().right))"""
    assert browser.execute_script(right) <= width


def test_names_are_shown_as_they_are(show):
    browser = show()
    assert [one.text for one in browser.find_elements('css selector', 'h3')][:2] == list(NAMES)
    assert not browser.find_elements('css selector', 'i')


def contrast(one, other):
    """WCAG's ratio of two colours #rrggbb."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize('text', ['ink', 'soft', 'accent'])
@pytest.mark.parametrize('ground', ['ground', 'card'])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_can_be_read(show, scheme, ground, text):
    browser = show(scheme=scheme)
    script = 'return getComputedStyle(document.documentElement).getPropertyValue(`--${arguments[0]}`).trim()'
    assert contrast(*(browser.execute_script(script, name) for name in (ground, text))) >= 4.5


def test_dark_is_dark(show):
    def colours(scheme):
        browser = show(scheme=scheme)
        return browser.execute_script(
            'const {backgroundColor, color} = getComputedStyle(document.body); return [backgroundColor, color]'
        )

    def sums(scheme):
        return [sum(map(int, colour.removeprefix('rgb(').removesuffix(')').split(','))) for colour in colours(scheme)]

    ground, ink = sums('light')
    assert ground > 650 > 150 > ink
    ground, ink = sums('dark')
    assert ground < 150 < 650 < ink


def test_page_is_silent(show):
    browser = show()
    drag(browser, 0.5, 0.8)
    first(browser, '.maps button').click()
    assert browser.get_log('browser') == []
    events = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    asked = [one['params']['request']['url'] for one in events if one['method'] == 'Network.requestWillBeSent']
    assert {url.partition(':')[0] for url in asked} == {'file', 'data'}
    assert len([url for url in asked if url.startswith('file')]) == 1
