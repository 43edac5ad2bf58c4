"""Where the networks register: BasicSR's ARCH_REGISTRY, or without BasicSR a registry of ours.

BasicSR's registry is taken without the rest of BasicSR, whose import takes seconds: its own networks are in it as soon
as BasicSR is imported, which `find` does if it has to.
"""

import importlib
from collections.abc import Callable, Iterator, KeysView
from types import ModuleType
from typing import Any, TypeVar, overload

from spinsr import compat

__all__ = ['ARCH_REGISTRY', 'find']


_Class = TypeVar('_Class', bound=type)


class Registry:
    """Classes by name, with the interface of BasicSR's Registry."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._obj_map: dict[str, type] = {}

    @overload
    def register(self, obj: _Class, suffix: str | None = None) -> _Class: ...

    @overload
    def register(self, obj: None = None, suffix: str | None = None) -> Callable[[_Class], _Class]: ...

    def register(self, obj: type | None = None, suffix: str | None = None) -> Any:
        """Registers a class under its name, followed by `_<suffix>` if given; without a class it is a decorator.

        Raises:
            ValueError: The name is taken.
        """
        if obj is None:
            return self._decorator(suffix)
        name = obj.__name__ if suffix is None else f'{obj.__name__}_{suffix}'
        if name in self._obj_map:
            raise ValueError(f'{name} is already registered in {self._name}: {self._obj_map[name]}')
        self._obj_map[name] = obj
        return obj

    def _decorator(self, suffix: str | None) -> Callable[[type], type]:
        return lambda obj: self.register(obj, suffix)

    def get(self, name: str) -> type:
        """The class of this name.

        Raises:
            KeyError: The name is not registered.
        """
        if name not in self._obj_map:
            raise KeyError(f'{name!r} is not registered in {self._name}')
        return self._obj_map[name]

    def __contains__(self, name: object) -> bool:
        return name in self._obj_map

    def __iter__(self) -> Iterator[tuple[str, type]]:
        return iter(self._obj_map.items())

    def keys(self) -> KeysView[str]:
        """The names."""
        return self._obj_map.keys()


def find(name: str) -> type | None:
    """The network that is registered as `name` or `<name>_basicsr`; one of BasicSR's own is imported first.

    Raises:
        ImportError: BasicSR is installed, but cannot be imported.
    """
    if name not in ARCH_REGISTRY and compat.is_installed():
        compat.require_basicsr()
        importlib.import_module('basicsr.archs')
    for known in (name, f'{name}_basicsr'):
        if known in ARCH_REGISTRY:
            return ARCH_REGISTRY.get(known)
    return None


def _hand_over(module: ModuleType) -> None:
    """Registers our networks in BasicSR, which has become importable after them."""
    for name, cls in ARCH_REGISTRY:
        if name not in module.ARCH_REGISTRY:
            module.ARCH_REGISTRY.register(cls, name.removeprefix(cls.__name__).removeprefix('_') or None)


_registries = compat.registries()
if _registries is None:
    ARCH_REGISTRY: Registry = Registry('arch')
    compat.around_import('basicsr.utils.registry', after=_hand_over)
else:
    ARCH_REGISTRY = _registries.ARCH_REGISTRY
