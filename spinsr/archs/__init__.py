"""The networks. Importing this package registers them in BasicSR, each under its class name, our RCAN as RCAN_spinsr.

Import it before `basicsr`: BasicSR 1.4.2 alone fails to import with current torchvision. It does not import BasicSR
itself, and works without it: `ARCH_REGISTRY` is then one of ours. Every file that ends in `_arch.py` is imported.
"""

import importlib
import pkgutil

from spinsr.archs.pretrained import add_methods
from spinsr.archs.registry import ARCH_REGISTRY

__all__ = ['ARCH_REGISTRY']

for _module in pkgutil.iter_modules(__path__):
    if _module.name.endswith('_arch'):
        importlib.import_module(f'{__name__}.{_module.name}')

# After the last one, so that a class is complete; networks of other projects keep their own methods.
for _cls in {id(cls): cls for _, cls in ARCH_REGISTRY if cls.__module__.startswith(f'{__name__}.')}.values():
    add_methods(_cls)
