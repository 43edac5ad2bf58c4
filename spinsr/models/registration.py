"""Our archs, models, datasets and losses, put into BasicSR's registries."""

import importlib
import pkgutil

from spinsr import compat
from spinsr.utils import memory
from spinsr.utils.errors import OptionError


def register() -> None:
    """Registers our archs, models, datasets and losses in BasicSR: the files that end in _arch.py, _model.py and so on.

    Raises:
        OptionError: If BasicSR is not installed or cannot be imported, for the reason that compat names.
        MemoryError: If memory does not suffice to import it.
    """
    try:
        compat.require_basicsr()
    except ImportError as error:
        if memory.ran_out(error):
            raise MemoryError(f'out of memory while importing: {error}') from error
        raise OptionError(str(error)) from error
    import spinsr.archs
    import spinsr.data
    import spinsr.losses
    import spinsr.models

    for package, ending in ((spinsr.data, '_dataset'), (spinsr.losses, '_loss'), (spinsr.models, '_model')):
        for module in pkgutil.iter_modules(package.__path__):
            if module.name.endswith(ending):
                importlib.import_module(f'{package.__name__}.{module.name}')
