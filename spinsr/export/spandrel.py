"""SPIN, SAN and RCAN in spandrel, the loader of chaiNNer and ComfyUI.

After `install()` spandrel's ModelLoader takes our files, BasicSR's and the authors'. Sizes and scale are told from the
state dict (`spinsr.convert.shapes`); the authors' RCAN is left to spandrel, which has that network itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spandrel import ArchRegistry

# A state dict with all the names of a row is of that arch.
_SIGNS = {
    'SPIN': (
        ('conv_first.weight', 'blocks.0.cross_attention.to_token.weight'),
        ('first_conv.weight', 'blocks.0.inter_layer.0.sp.weight'),
    ),
    'SAN': (
        ('conv_first.weight', 'non_local.theta.weight', 'groups.0.attention.attention.0.weight'),
        ('head.0.weight', 'non_local.non_local.theta.weight', 'RG.0.soca.conv_du.0.weight'),
    ),
    'RCAN': (('conv_first.weight', 'conv_after_body.weight', 'body.0.residual_group.0.rcab.3.attention.1.weight'),),
}

IDS = {'SPIN': 'SPIN_spinsr', 'SAN': 'SAN_spinsr', 'RCAN': 'RCAN_spinsr'}


def install(registry: ArchRegistry | None = None, arch_args: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Registers SPIN, SAN and RCAN with spandrel, as 'SPIN_spinsr', 'SAN_spinsr' and 'RCAN_spinsr'.

    They are detected before what is in the registry; calling it again changes nothing.

    Args:
        registry: Where to; None means spandrel's MAIN_REGISTRY, which every ModelLoader uses.
        arch_args: By 'SPIN', 'SAN' or 'RCAN', arguments that no shape tells and that are not the default, as
            `{'SPIN': {'stoken_size': (12, 16)}}`.

    Raises:
        ImportError: spandrel is not installed.
        ValueError: `arch_args` names another arch.
    """
    try:
        import spandrel
    except ImportError as error:
        raise ImportError('spinsr.spandrel needs the package spandrel: pip install spandrel') from error
    arch_args = arch_args or {}
    if unknown := set(arch_args) - set(IDS):
        raise ValueError(f'arch_args must be for {", ".join(IDS)}, got {", ".join(sorted(unknown))}')
    registry = spandrel.MAIN_REGISTRY if registry is None else registry
    others = tuple(support.architecture.id for support in registry if support.architecture.id not in IDS.values())
    supports = (
        spandrel.ArchSupport.from_architecture(_architecture(arch, dict(arch_args.get(arch, {}))), before=others)
        for arch in IDS
    )
    registry.add(*supports, ignore_duplicates=True)


def _architecture(arch: str, arch_args: dict[str, Any]) -> Any:
    """An instance of a spandrel Architecture; the class is made here, for spandrel may be absent."""
    import spandrel

    from spinsr.archs import ARCH_REGISTRY
    from spinsr.convert import convert_state_dict
    from spinsr.convert.shapes import arch_args_of

    def detect(state_dict: Mapping) -> bool:
        return any(all(name in state_dict for name in sign) for sign in _SIGNS[arch])

    class Architecture(spandrel.Architecture):
        def load(self, state_dict: Mapping) -> spandrel.ImageModelDescriptor:
            state_dict = convert_state_dict(state_dict, arch)
            args = arch_args_of(state_dict, arch) | arch_args
            tags = [f'{args["num_feat"]}nf', f'{args["num_block"]}nb']
            return spandrel.ImageModelDescriptor(
                ARCH_REGISTRY.get('RCAN_spinsr' if arch == 'RCAN' else arch)(**args),
                state_dict,
                architecture=self,
                purpose='SR',
                tags=tags if arch == 'SPIN' else [*tags, f'{args["num_group"]}ng'],
                # Features are in the scale of 0..255 in RCAN and SAN, and superpixels need float32.
                supports_half=False,
                supports_bfloat16=False,
                scale=args['upscale'],
                input_channels=args['num_in_ch'],
                output_channels=args['num_out_ch'],
                # All three look at the whole image.
                tiling=spandrel.ModelTiling.SUPPORTED if arch == 'RCAN' else spandrel.ModelTiling.DISCOURAGED,
            )

    return Architecture(id=IDS[arch], name=f'{arch} (spinsr)', detect=detect)
