"""The networks. Importing this package registers them in BasicSR: SPIN, SAN, RCAN_spinsr, EMT, RLFN and
RDBESA.

Import it before anything of BasicSR: BasicSR 1.4.2 alone does not import beside today's torchvision. Every file that
ends in `_arch.py` is picked up.
"""

import importlib
import pkgutil

from spinsr import compat

compat.install()

from basicsr.utils.registry import ARCH_REGISTRY  # noqa: E402

__all__ = ['ARCH_REGISTRY']

for _module in pkgutil.iter_modules(__path__):
    if _module.name.endswith('_arch'):
        importlib.import_module(f'{__name__}.{_module.name}')
