"""What every test has: determinism, one table of tolerances, and the authors' own networks in small."""

import logging
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

# Triton reads this when it is imported: without a GPU its kernels are interpreted, with one they are compiled.
if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # what cuBLAS needs to be deterministic

PARITY = Path(__file__).parent / 'parity'

CHROMIUM_FLAGS = """--headless=new --disable-gpu --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"""

# Largest error, in units of the largest expected value where that is above 1.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 3e-6}


@pytest.fixture(scope='session', autouse=True)
def one_thread():
    """The tensors of the tests are small: several threads would spend their time waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    monkeypatch.delenv('SPINSR_OPS_BACKEND', raising=False)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def fresh_log():
    """BasicSR's logger keeps the stderr, which pytest closes, and the level of the first who asks for it."""
    yield
    module = sys.modules.get('basicsr.utils.logger')
    if module is not None:
        logger = logging.getLogger('basicsr')
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        module.initialized_logger.clear()


@pytest.fixture
def assert_close():
    """Compares two tensors, or two sequences of them, by the table; infinities must be equal."""

    def check(actual, expected, dtype=None):
        if not isinstance(actual, Tensor):
            assert len(actual) == len(expected)
            for one, other in zip(actual, expected, strict=True):
                check(one, other, dtype)
            return
        finite = expected[expected.isfinite()].abs()
        scale = max(1.0, finite.max().item()) if finite.numel() else 1.0
        tolerance = TOLERANCES[dtype or actual.dtype] * scale
        torch.testing.assert_close(actual.detach().double(), expected.detach().double(), rtol=0, atol=tolerance)

    return check


def _forward_backward(function, inputs):
    with torch.no_grad():
        inferred = function(*inputs)
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves)
    # Quarters up to 2 are exact in every float type: all types get the same upstream gradient.
    upstream = torch.randint(-8, 9, output.shape, generator=torch.Generator().manual_seed(1)) / 4
    return inferred, output.detach(), *torch.autograd.grad(output, leaves, upstream.to(output))


@pytest.fixture
def forward_backward():
    """(function, *inputs) -> the output without gradients, with gradients, and each input's gradient.

    The upstream gradient is random, and the same for all calls with the same shape.
    """
    return lambda function, *inputs: _forward_backward(function, inputs)


@pytest.fixture
def assert_half_close():
    """Output and gradients in a half type: error at most twice that of the plain formulation in the same type."""

    def error(results, exact):
        return [(one.double() - other).norm().item() for one, other in zip(results, exact, strict=True)]

    def check(function, plain, *inputs):
        exact = _forward_backward(plain, [x.double() for x in inputs])
        allowed = [2 * e for e in error(_forward_backward(plain, inputs), exact)]
        errors = error(_forward_backward(function, inputs), exact)
        assert all(e <= limit for e, limit in zip(errors, allowed, strict=True)), (errors, allowed)

    return check


@pytest.fixture(scope='session')
def shared():
    """Finds a file or folder that may not be part of the project, in `shared/` beside the checkout; skips without it.

    No other test code reaches outside the checkout.
    """

    def find(name: str) -> Path:
        path = Path(__file__).resolve().parents[2] / 'shared' / name
        if not path.exists():
            pytest.skip(f'needs {path}')
        return path

    return find


@pytest.fixture(scope='session')
def benchmark_folder(shared):
    """Set5 and Set14 with their published LR."""
    return shared('data/benchmark')


@pytest.fixture(scope='session')
def official():
    """Reads tests/parity/<name>.npz."""
    from spinsr.convert.parity import read_official

    return lambda name: read_official(PARITY / f'{name}.npz')


@pytest.fixture
def compiled():
    """Compiles a whole network without a graph break, by a torch.compile that has seen no other test's networks."""
    torch._dynamo.reset()
    yield lambda net, backend='aot_eager': torch.compile(net, fullgraph=True, backend=backend)
    torch._dynamo.reset()


@pytest.fixture
def hears_ctrl_c():
    """What a child process runs first: a shell starts background jobs, and so the tests in one, deaf to Ctrl-C."""
    return lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope='session')
def photo():
    """(height, width, seed) -> (H, W, 3) uint8: smooth, with noise and edges, so that LR depends on every detail."""

    def make(height: int, width: int, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:height, :width]
        waves = 90 * np.sin(x / 7 + seed) * np.cos(y / 11) + 60 * ((x // 16 + y // 16) % 2)
        noise = rng.integers(-40, 40, (height, width, 3))
        return np.clip(waves[..., None] + noise + 100, 0, 255).astype(np.uint8)

    return make


@pytest.fixture(scope='session')
def write_photo(photo):
    """(path, height, width, seed) -> the image written there."""

    def write(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
        from spinsr.data import image_file

        image = photo(height, width, seed)
        image_file.write_png(path, image)
        return image

    return write


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
    """Headless Chromium with logs of its console and network; skips where it is not installed."""
    program = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    driver = shutil.which('chromedriver')
    if not (program and driver):
        pytest.skip('needs chromium and chromedriver (Debian: chromium-driver)')
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    root = ['--no-sandbox'] if hasattr(os, 'geteuid') and os.geteuid() == 0 else []
    for flag in [*CHROMIUM_FLAGS.split(), *root, f'--user-data-dir={tmp_path_factory.mktemp("chromium")}']:
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    with webdriver.Chrome(options=options, service=Service(driver)) as browser:
        yield browser


@pytest.fixture
def truncate():
    """Leaves the first half of a file."""

    def cut(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])

    return cut


@pytest.fixture
def corrupt():
    """Flips a bit in the middle of a file."""

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return flip
