"""The page in headless Chromium: upload, result, download, errors, a narrow screen, and silence."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.support.wait import WebDriverWait

from spinsr import cli
from spinsr.data import photograph

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not importlib.util.find_spec('gradio'), reason='needs gradio'),
]


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    """The command, its URL, and where it may leave files."""
    temporary = tmp_path_factory.mktemp('temporary')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    command = [sys.executable, '-m', 'spinsr', 'app', f'--port={port}', '--max-mb=1', '--max-pixels=10000']
    environment = os.environ | {'TMPDIR': str(temporary), 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1'}
    log = temporary.with_suffix('.log')
    with log.open('w') as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    line = process.stdout.readline()
    assert line, log.read_text()
    yield process, line.split()[0], temporary
    process.kill()
    process.wait()


@pytest.fixture
def show(chromium, server):
    """Opens the page in a window of this width, waits until it is there, and returns the browser."""

    def open_page(width=1280):
        size = {'width': width, 'height': 900, 'deviceScaleFactor': 1, 'mobile': width < 600}
        chromium.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
        chromium.get_log('performance')
        chromium.get(server[1])
        wait(chromium, lambda: chromium.find_elements('css selector', '#source input[type=file]'))
        return chromium

    return open_page


def wait(browser, condition, seconds=180):
    """What the condition returns once it is true; an element that the page replaces meanwhile is looked up again."""
    driver_wait = WebDriverWait(browser, seconds, ignored_exceptions=[StaleElementReferenceException])
    return driver_wait.until(lambda _: condition())


def with_text(browser, selector, text=''):
    """Elements whose text is shown and contains `text`: what moves in has none at first."""
    found = [(element, element.text) for element in browser.find_elements('css selector', selector)]
    return [element for element, shown in found if shown and text in shown]


def upload(browser, path):
    browser.find_element('css selector', '#source input[type=file]').send_keys(str(path))


def choose(browser, name, value):
    browser.find_element('css selector', f'#{name} input').click()
    wait(browser, lambda: with_text(browser, '[role=option]', value))[0].click()


def is_enabled(browser, name):
    return browser.find_element('css selector', f'button#{name}').is_enabled()


def shown_text(browser):
    return browser.find_element('css selector', 'body').text


def widths(browser, name):
    """Widths of the pictures of a part of the page, once they are loaded."""
    script = """const found = [...document.querySelectorAll(`#${arguments[0]} img`)];
    return found.every((one) => one.complete) && found.map((one) => one.naturalWidth);"""
    return browser.execute_script(script, name)


def requested(browser):
    events = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    return [one['params']['request']['url'] for one in events if one['method'] == 'Network.requestWillBeSent']


def enlarge(browser, path, scale):
    upload(browser, path)
    wait(browser, lambda: is_enabled(browser, 'start'))
    choose(browser, 'scale', str(scale))
    browser.find_element('id', 'start').click()
    wait(browser, lambda: is_enabled(browser, 'download'))


def test_download_is_the_output_of_upscale(show, server, tmp_path, photo):
    deep = np.dstack([photo(40, 60).astype(np.uint16) * 257, np.full((40, 60), 30000, np.uint16)])
    source = tmp_path / 'two words.png'
    photograph.write(source, photograph.Photograph(deep, png_chunks=((b'gAMA', (45455).to_bytes(4, 'big')),)))
    browser = show()
    folder = tmp_path / 'downloads'
    browser.execute_cdp_cmd('Browser.setDownloadBehavior', {'behavior': 'allow', 'downloadPath': str(folder)})
    enlarge(browser, source, 2)
    assert cli.main(['upscale', str(source), '-o', str(tmp_path / 'out'), '--scale', '2', '--tile', '256']) == 0
    expected = tmp_path / 'out' / 'two words_x2.png'
    browser.find_element('id', 'download').click()
    wait(browser, (folder / expected.name).exists)
    assert (folder / expected.name).read_bytes() == expected.read_bytes()
    assert wait(browser, lambda: widths(browser, 'slider')) == [120, 120]
    assert len(wait(browser, lambda: widths(browser, 'superpixels'))) >= 2
    asked = requested(browser)
    assert {url for url in asked if not url.startswith((server[1], 'data:', 'blob:'))} == set()
    assert any(url.startswith(server[1]) for url in asked)


def test_broken_file_is_an_error_in_the_page(show, tmp_path, write_photo, truncate):
    path = tmp_path / 'broken.png'
    write_photo(path, 40, 60)
    truncate(path)
    browser = show()
    upload(browser, path)
    message = wait(browser, lambda: with_text(browser, '.toast-body'))[0].text
    assert 'broken.png' in message
    assert os.sep not in message
    assert not is_enabled(browser, 'start')


def test_limits_are_named(show, tmp_path, photo):
    many, large = tmp_path / 'many.png', tmp_path / 'large.bmp'
    Image.fromarray(photo(101, 100)).save(many)
    Image.fromarray(np.zeros((640, 640, 3), np.uint8)).save(large)
    browser = show()
    upload(browser, many)
    wait(browser, lambda: '10,000 pixels' in shown_text(browser) and '101x100' in shown_text(browser))
    browser = show()
    upload(browser, large)
    wait(browser, lambda: 'at most 1 MB (max_mb), has 1.2 MB' in shown_text(browser))
    assert not is_enabled(browser, 'start')


def test_fits_a_telephone(show, tmp_path, write_photo):
    path = tmp_path / 'photo.png'
    write_photo(path, 40, 60)
    browser = show(375)
    enlarge(browser, path, 2)
    wait(browser, lambda: widths(browser, 'slider'))
    width, right = browser.execute_script(
        """const shown = ['source', 'scale', 'start', 'slider', 'summary', 'download', 'superpixels'];
        const edges = shown.map((name) => document.getElementById(name).getBoundingClientRect().right);
        return [document.documentElement.scrollWidth, Math.max(...edges)];"""
    )
    assert width <= 375
    assert right <= 375


def test_ends_without_files(server):
    """The last test of the file: it ends the server."""
    process, _, temporary = server
    assert [path for path in temporary.rglob('*') if path.is_file()] != []
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert list(temporary.iterdir()) == []
