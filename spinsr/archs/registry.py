"""Where the networks register: BasicSR's ARCH_REGISTRY."""

from spinsr import compat

compat.install()

from basicsr.utils.registry import ARCH_REGISTRY  # noqa: E402

__all__ = ['ARCH_REGISTRY']
