"""SPIN, SAN and RCAN for BasicSR.

`import spinsr.archs` registers the networks; `spinsr.load` and `spinsr.upscale` use them from Python. Importing this
package alone pulls in neither torch nor BasicSR.
"""

from typing import TYPE_CHECKING

from spinsr._version import __version__

if TYPE_CHECKING:
    from spinsr.inference.load import load
    from spinsr.inference.upscale import upscale

__all__ = ['__version__', 'load', 'upscale']


def __getattr__(name: str):
    if name == 'load':
        from spinsr.inference.load import load

        return load
    if name == 'upscale':
        from spinsr.inference.upscale import upscale

        return upscale
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
    return __all__
