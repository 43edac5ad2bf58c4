"""The networks of spinsr in spandrel, the loader of chaiNNer and ComfyUI.

After `install()` spandrel's ModelLoader takes our files, BasicSR's and the authors'. Networks, sizes and scale are told
from the state dict; authors' files of networks that spandrel has itself are left to spandrel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spandrel import ArchRegistry

    from spinsr.convert.registry import ArchFormat

# Tags of spandrel for the sizes of a network.
_TAGS = {'num_feat': 'nf', 'num_block': 'nb', 'num_group': 'ng'}


def install(registry: ArchRegistry | None = None, arch_args: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Registers the networks that have an `ArchFormat` with spandrel: SPIN as 'SPIN_spinsr' and so on.

    They are detected before the networks in the registry; calling it again changes nothing.

    Args:
        registry: None means spandrel's MAIN_REGISTRY, which every ModelLoader uses.
        arch_args: By network, arguments that no shape tells and that are not the default, as
            `{'SPIN': {'stoken_size': (12, 16)}}`.

    Raises:
        ImportError: spandrel is not installed.
        ValueError: `arch_args` names another arch.
    """
    try:
        import spandrel
    except ImportError as error:
        raise ImportError('spinsr.spandrel needs the package spandrel: pip install spandrel') from error
    from spinsr.convert.registry import formats

    arch_args = arch_args or {}
    known = {format.name: format for format in formats()}
    if unknown := set(arch_args) - set(known):
        raise ValueError(f'arch_args must be for {", ".join(known)}, got {", ".join(sorted(unknown))}')
    registry = spandrel.MAIN_REGISTRY if registry is None else registry
    ours = {_id(format) for format in known.values()}
    others = tuple(support for support in registry if support.architecture.id not in ours)
    before = tuple(support.architecture.id for support in others)
    supports = (
        spandrel.ArchSupport.from_architecture(
            _architecture(format, dict(arch_args.get(name, {})), others), before=before
        )
        for name, format in known.items()
    )
    registry.add(*supports, ignore_duplicates=True)


def _id(format: ArchFormat) -> str:
    return f'{format.name}_spinsr'


def _architecture(format: ArchFormat, arch_args: dict[str, Any], others: tuple) -> Any:
    """An instance of a spandrel Architecture; the class is made here because spandrel may be absent."""
    import spandrel

    from spinsr.convert import convert_state_dict, detect_arch
    from spinsr.convert.shapes import arch_args_of
    from spinsr.convert.state_dicts import belongs_to

    def detect(state_dict: Mapping) -> bool:
        try:
            if not belongs_to(state_dict, format) or detect_arch(state_dict) != format.name:
                return False
        except (ValueError, TypeError):
            return False
        # BasicSR's own networks have the authors' names, or are not ours to take.
        official = format.table.is_official(state_dict) or isinstance(format.arch, str)
        return not (official and any(support.architecture.detect(state_dict) for support in others))

    class Architecture(spandrel.Architecture):
        def load(self, state_dict: Mapping) -> spandrel.ImageModelDescriptor:
            state_dict = convert_state_dict(state_dict, format.name)
            args = arch_args_of(state_dict, format.name, given=arch_args) | arch_args
            channels = args.get('num_in_ch', 3)
            discouraged = format.tiling == 'discouraged'
            sizes = format.sizes
            return spandrel.ImageModelDescriptor(
                format.cls(**args),
                state_dict,
                architecture=self,
                purpose='SR',
                tags=[f'{args[key]}{tag}' for key, tag in _TAGS.items() if key in args],
                supports_half='fp16' in format.half,
                supports_bfloat16='bf16' in format.half,
                scale=args[format.scale_keyword],
                input_channels=channels,
                output_channels=args.get('num_out_ch', channels),
                size_requirements=None
                if sizes.pads
                else spandrel.SizeRequirements(minimum=sizes.minimum, multiple_of=sizes.multiple),
                tiling=spandrel.ModelTiling.DISCOURAGED if discouraged else spandrel.ModelTiling.SUPPORTED,
            )

    return Architecture(id=_id(format), name=f'{format.name} (spinsr)', detect=detect)
