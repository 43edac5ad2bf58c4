"""SPIN, SAN and RCAN for BasicSR.

`import spinsr.archs` registers the networks; `spinsr.load` and `spinsr.upscale` use them from Python. Importing this
package alone pulls in neither torch nor BasicSR.
"""

__version__ = '0.1.0'

__all__ = ['__version__', 'load', 'upscale']


def __getattr__(name: str):
    if name == 'load':
        from spinsr.network import load

        return load
    if name == 'upscale':
        from spinsr.infer import upscale

        return upscale
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
    return __all__
