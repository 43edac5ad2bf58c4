"""The one place where BasicSR 1.4.2 is made to work on today's torch, torchvision and Python.

`install()` comes before the first `import basicsr`; `import spinsr.archs` calls it. It imports nothing: the shims that
BasicSR needs to be imported are made when that import starts. Every shim looks for the feature it replaces, never for a
version, does nothing where the feature is there, and says when it can go. NumPy 2 and OpenCV 5 need no shim: BasicSR
uses nothing of theirs that has gone.
"""

import functools
import importlib.metadata
import importlib.util
import os
import re
import sys
import weakref
from collections.abc import Callable, Mapping, MutableMapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from spinsr.utils import memory

# How to get BasicSR, for messages.
INSTALL = 'spinsr install-basicsr'


def install() -> None:
    """Makes BasicSR 1.4.2 importable and runnable; cheap, silent and harmless to call again.

    `import basicsr` then raises ImportError if torchvision is missing or does not fit the installed torch.
    """
    around_import('basicsr', before=_prepare_import)
    resume_without_cuda()
    share_lmdb_environments()


def is_installed() -> bool:
    """Whether BasicSR is there to be imported; does not import it."""
    return sys.modules.get('basicsr') is not None or importlib.util.find_spec('basicsr') is not None


def require_basicsr() -> None:
    """Makes sure that BasicSR is there and can be imported.

    Raises:
        ImportError: BasicSR is not installed, or torchvision is missing or does not fit the installed torch.
    """
    if not is_installed():
        raise ImportError(f'BasicSR is not installed; get it with: {INSTALL}')
    install()
    _prepare_import()


def _prepare_import() -> None:
    require_torchvision()
    provide_functional_tensor()
    provide_distutils_version()
    provide_ndimage_filters()


def registries() -> ModuleType | None:
    """BasicSR's module of registries without the rest of BasicSR, whose import takes seconds; None without BasicSR.

    The module is executed from its file and kept aside. Whoever imports `basicsr.utils.registry` imports all of
    BasicSR, as always, and gets this very module.
    """
    install()
    name = 'basicsr.utils.registry'
    for finder in sys.meta_path:
        if isinstance(finder, _Provided):
            return finder.module
    if not is_installed():
        return None
    if 'basicsr' not in sys.modules:
        package = importlib.util.find_spec('basicsr')
        for folder in (package and package.submodule_search_locations) or ():
            path = Path(folder, 'utils', 'registry.py')
            if path.is_file():
                spec = importlib.util.spec_from_file_location(name, path)
                assert spec is not None and spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                sys.meta_path.insert(0, _Provided(module))
                return module
    return importlib.import_module(name)


class _Provided(MetaPathFinder, Loader):
    """Hands out a module that has been executed before, once, when it is imported."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        # The import system gives the module another spec; this is its own.
        assert module.__spec__ is not None
        self.spec = module.__spec__

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != self.module.__name__:
            return None
        return importlib.util.spec_from_file_location(fullname, self.spec.origin, loader=self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec
        sys.meta_path.remove(self)


def require_torchvision() -> None:
    """Imports torchvision, or says which pair of torch and torchvision to install.

    BasicSR cannot be imported without torchvision. A torchvision built for another torch fails in ways that do not name
    the cause ("operator torchvision::nms does not exist"), and the shim below must not turn that into a puzzle. Can go
    when torchvision names the cause itself.

    Raises:
        ImportError: If torchvision is missing or does not fit the installed torch.
        MemoryError: As Python or the system raises it, if memory does not suffice.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    # A torchvision of another build fails with RuntimeError, OSError or AttributeError as well as with ImportError.
    except Exception as error:
        if memory.ran_out(error):
            raise
        raise ImportError(_torchvision_advice(torch.__version__, error)) from error


def _torchvision_advice(torch_version: str, error: Exception) -> str:
    rule = 'torchvision must come from the same index as torch and be the release made for it'
    try:
        vision = importlib.metadata.version('torchvision')
        needs = importlib.metadata.requires('torchvision') or []
    except importlib.metadata.PackageNotFoundError:
        vision, needs = 'none', []
    pinned = [match.group(1) for need in needs if (match := re.match(r'torch\s*\(?==\s*([^\s;,)]+)', need))]
    torch_public, vision_public = torch_version.partition('+')[0], vision.partition('+')[0]
    if pinned and pinned[0].partition('+')[0] != torch_public:
        reason = f'torchvision {vision} is made for torch {pinned[0]}'
        pair = f'torch=={pinned[0].partition("+")[0]} torchvision=={vision_public}'
    elif pinned:
        reason = f'torchvision {vision} is the right release for this torch, but of another build'
        pair = f'torch=={torch_public} torchvision=={vision_public}'
    else:
        reason = f'installed torchvision: {vision}'
        pair = f'torch=={torch_public} torchvision'
    return (
        f'{rule}, but `import torchvision` fails ({type(error).__name__}: {error}); installed torch: {torch_version}; '
        f'{reason}; install both in one command: pip install --force-reinstall {pair}'
    )


def provide_functional_tensor() -> None:
    """Gives back `torchvision.transforms.functional_tensor`, which torchvision 0.17 removed.

    BasicSR's degradations.py takes `rgb_to_grayscale` from it; the function lives on in torchvision's public
    `transforms.functional`. Can go when BasicSR imports it from there.
    """
    name = 'torchvision.transforms.functional_tensor'
    if importlib.util.find_spec(name) is not None:
        return
    import torchvision.transforms.functional

    module = _new_module(name, 'Stands in for the module that torchvision removed; made by spinsr.compat.')
    module.rgb_to_grayscale = torchvision.transforms.functional.rgb_to_grayscale
    torchvision.transforms.functional_tensor = module  # pyright: ignore[reportAttributeAccessIssue]


def provide_distutils_version() -> None:
    """Gives back `distutils.version.LooseVersion`, which Python 3.12 removed and setuptools brings along.

    BasicSR's arch_util.py compares torchvision's version with it. Nothing else of distutils is offered, so that whoever
    asks for more gets the ImportError of before. Can go when BasicSR stops using distutils.
    """
    if importlib.util.find_spec('distutils') is not None:
        return
    package = _new_module('distutils', 'Holds distutils.version only; made by spinsr.compat.')
    package.__path__ = []
    package.version = _new_module('distutils.version', 'Holds LooseVersion only; made by spinsr.compat.')
    package.version.LooseVersion = LooseVersion


def provide_ndimage_filters() -> None:
    """Restores `scipy.ndimage.filters`, which SciPy 2.0 removes.

    BasicSR's niqe.py takes `convolve` from it; the function lives on in `scipy.ndimage`. Can go when BasicSR imports it
    from there.
    """
    name = 'scipy.ndimage.filters'
    if importlib.util.find_spec('scipy') is None or importlib.util.find_spec(name) is not None:
        return
    import scipy.ndimage

    module = _new_module(name, 'Stands in for the module that SciPy removed; made by spinsr.compat.')
    module.convolve = scipy.ndimage.convolve
    scipy.ndimage.filters = module


@functools.total_ordering
class LooseVersion:
    """A version that compares by the numbers in its public part: '0.29.2+cpu' is (0, 29, 2).

    Args:
        version: The version as text.
    """

    def __init__(self, version: str) -> None:
        self.vstring = version
        self.version = [int(number) for number in re.findall(r'\d+', version.partition('+')[0])]

    def __eq__(self, other: object) -> bool:
        return self.version == _as_version(other).version

    def __lt__(self, other: object) -> bool:
        return self.version < _as_version(other).version

    def __hash__(self) -> int:
        return hash(tuple(self.version))

    def __repr__(self) -> str:
        return f'LooseVersion({self.vstring!r})'


def _as_version(other: object) -> LooseVersion:
    return other if isinstance(other, LooseVersion) else LooseVersion(str(other))


def _new_module(name: str, doc: str) -> Any:
    module = ModuleType(name, doc)
    # With a spec, importlib.util.find_spec answers for it, and a second install() leaves it alone.
    module.__spec__ = ModuleSpec(name, loader=None)
    sys.modules[name] = module
    return module


def resume_without_cuda() -> None:
    """Lets BasicSR's train_pipeline resume where there is no CUDA.

    Its load_resume_state asks for the current CUDA device and moves the whole state there. The replacement leaves it in
    charge where CUDA is there, and is put into `basicsr.train` as soon as that module is imported, so a project that
    only imports spinsr.archs and calls BasicSR's own train_pipeline resumes too. A function that somebody else has put
    there is left alone. Can go when BasicSR loads with map_location='cpu'.
    """
    around_import('basicsr.train', after=_replace_load_resume_state)


def _replace_load_resume_state(train: Any) -> None:
    own = getattr(train, 'load_resume_state', None)
    if own is None or getattr(own, '__module__', None) != 'basicsr.train':
        return

    def load_resume_state_anywhere(opt: MutableMapping[str, Any]) -> dict[str, Any] | None:
        import torch

        return own(opt) if torch.cuda.is_available() else load_resume_state(opt)

    train.load_resume_state = load_resume_state_anywhere


def load_resume_state(opt: MutableMapping[str, Any]) -> dict[str, Any] | None:
    """Loads the training state that `path: resume_state` or --auto_resume asks for, on any device.

    BasicSR's function of the same name without its two limits: the state is loaded on the CPU (the optimizer moves its
    tensors to its parameters), and --auto_resume looks where the states are written, in `path: training_states`.

    Args:
        opt: BasicSR's options; `path` gets the state's and its networks' files.

    Returns:
        The state, or None where there is nothing to resume.
    """
    import torch
    from basicsr.utils import check_resume

    path = find_resume_state(opt)
    if path is None:
        return None
    opt['path']['resume_state'] = path
    state = torch.load(path, map_location='cpu', weights_only=True)
    check_resume(opt, state['iter'])
    return state


def find_resume_state(opt: Mapping[str, Any]) -> str | None:
    """The state from which training continues, or None: the last one for --auto_resume, else `path: resume_state`."""
    if not opt['auto_resume']:
        return opt['path'].get('resume_state') or None
    states = [path for path in Path(opt['path']['training_states']).glob('*.state') if path.stem.isdecimal()]
    return str(max(states, key=lambda path: int(path.stem))) if states else None


def share_lmdb_environments() -> None:
    """Lets two of BasicSR's datasets read one LMDB.

    lmdb 2 refuses to open a database twice in a process, and earlier ones crashed on it now and then; BasicSR opens one
    for every dataset, so two validation sets on one LMDB, or a worker forked after a validation on its LMDB, fail. The
    replacement opens a database once for all readers of the process; a forked worker uses the one it inherits,
    which LMDB allows for read-only databases without a lock file. Can go when BasicSR's LmdbBackend shares them.
    """
    around_import('basicsr.utils.file_client', after=_replace_lmdb_backend)


def _replace_lmdb_backend(file_client: ModuleType) -> None:
    own = file_client.FileClient._backends.get('lmdb')
    if getattr(own, '__module__', None) != 'basicsr.utils.file_client':
        return

    class SharedLmdbBackend(own):
        """BasicSR's LmdbBackend on environments that the whole process shares."""

        def __init__(
            self,
            db_paths: str | list[str],
            client_keys: str | list[str] = 'default',
            readonly: bool = True,
            lock: bool = False,
            readahead: bool = False,
            **kwargs: Any,
        ) -> None:
            if lock or not readonly:
                super().__init__(db_paths, client_keys, readonly, lock, readahead, **kwargs)
                return
            self.db_paths = [str(path) for path in (db_paths if isinstance(db_paths, list) else [db_paths])]
            keys = client_keys if isinstance(client_keys, list) else [client_keys]
            if len(keys) != len(self.db_paths):
                raise ValueError(f'client_keys and db_paths must have the same length, got {keys} and {self.db_paths}')
            self._client = {
                key: _open_shared(path, readahead, kwargs) for key, path in zip(keys, self.db_paths, strict=True)
            }

    file_client.FileClient._backends['lmdb'] = SharedLmdbBackend


_environments: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def _open_shared(path: str, readahead: bool, kwargs: dict[str, Any]) -> Any:
    import lmdb

    from spinsr.utils import lmdb_file
    from spinsr.utils.errors import DataError

    key = os.path.realpath(path)
    environment = _environments.get(key)
    if environment is None:
        if problem := lmdb_file.data_problem(path):
            raise DataError(problem)
        environment = lmdb.open(path, readonly=True, lock=False, readahead=readahead, **kwargs)
        _environments[key] = environment
    return environment


def around_import(
    name: str, before: Callable[[], None] | None = None, after: Callable[[ModuleType], None] | None = None
) -> None:
    """Calls before() and after(module) when a module is imported, or now if it is already.

    Args:
        name: The module. Until it is imported, only the first call for it counts; after that every call acts at once.
        before: Called before its code is executed.
        after: Called with the module after that.
    """
    module = sys.modules.get(name)  # None also stops an import
    if module is not None:
        if before:
            before()
        if after:
            after(module)
    elif not any(isinstance(finder, _AroundImport) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _AroundImport(name, before, after))


class _AroundImport(MetaPathFinder):
    """Waits for the import of one module, adds actions to its execution and leaves."""

    def __init__(
        self, name: str, before: Callable[[], None] | None = None, after: Callable[[ModuleType], None] | None = None
    ) -> None:
        self.name, self.before, self.after = name, before, after

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, 'find_spec'))
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            exec_module = spec.loader.exec_module

            def exec_between(module: ModuleType) -> None:
                if self.before:
                    self.before()
                exec_module(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                if self.after:
                    self.after(module)

            spec.loader.exec_module = exec_between
        return spec
