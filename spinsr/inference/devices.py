"""Which device runs a network, and what it leaves to the CPU."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import torch

logger = logging.getLogger('spinsr')

# In the order in which `auto` takes them.
ACCELERATORS = ('cuda', 'mps', 'xpu')
# torch runs ops that these devices lack on the CPU if this is set before it is imported; the last one makes XPU name
# them in its warnings, as MPS does.
_FALLBACK = ('PYTORCH_ENABLE_MPS_FALLBACK', 'PYTORCH_ENABLE_XPU_FALLBACK', 'PYTORCH_DEBUG_XPU_FALLBACK')
# Those of them that the user had not set.
set_by_spinsr: set[str] = set()
_FALLS_BACK = re.compile(r"operator '?([\w:.]+)'?.*fall(?:ing)? back", re.DOTALL)


def allow_fallback() -> None:
    """Lets MPS and XPU run the ops that they lack on the CPU; has an effect before torch is imported only."""
    if 'torch' not in sys.modules:
        for name in _FALLBACK:
            if name not in os.environ:
                os.environ[name] = '1'
                set_by_spinsr.add(name)


def select(name: str = 'auto') -> torch.device:
    """The device of a name.

    Args:
        name: As torch takes it; 'auto' is the first of CUDA, MPS and XPU that is available, else the CPU.

    Raises:
        ValueError: Unknown, or not available on this machine.
    """
    import torch

    if name == 'auto':
        for kind in ACCELERATORS:
            backend = getattr(torch.backends if kind == 'mps' else torch, kind, None)
            if backend is not None and backend.is_available():
                return torch.device(kind)
        return torch.device('cpu')
    try:
        chosen = torch.device(name)
        torch.zeros(1, device=chosen)
    # torch raises RuntimeError for a wrong name, AssertionError where it was built without CUDA.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f'--device {name}: {str(error).splitlines()[0]}') from error
    return chosen


@contextlib.contextmanager
def said_once(device: torch.device) -> Iterator[None]:
    """Logs one line for each op that a device leaves to the CPU, in place of torch's warnings."""
    import torch

    said: set[str] = set()
    show, warned_always = warnings.showwarning, torch.is_warn_always_enabled()

    def say(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        match = _FALLS_BACK.search(str(message))
        if match is None:
            show(message, category, filename, lineno, file, line)
        elif match[1] not in said:
            said.add(match[1])
            logger.warning('%s lacks %s: this op runs on the CPU, which is slower', device.type, match[1])

    with warnings.catch_warnings():
        warnings.filterwarnings('always', message='.*fall(ing)? back')
        warnings.showwarning = say
        # Otherwise torch warns of the first op only.
        torch.set_warn_always(device.type in ('mps', 'xpu') or warned_always)
        try:
            yield
        finally:
            torch.set_warn_always(warned_always)
