"""SPIN with the switches of the paper's ablations (Table 2), and with its equations as printed (docs/experiments.md).

Upstream has none of these variants; docs/paper.md says what was decided where the paper leaves them open.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from spinsr.archs.registry import ARCH_REGISTRY
from spinsr.archs.spin_arch import FORMAT, SPIN, SuperpixelInteractionBlock
from spinsr.convert.registry import Onnx, register_format
from spinsr.modules.spin import SuperpixelAggregation
from spinsr.ops import Association
from spinsr.utils.validation import FLAG, check, one_of, whole

# Aggregation -> how many cells away the superpixels of a pixel are; None: anywhere in the image.
REACH = {'superpixel': 1, 'mixture': None, 'patch': 0}
INTERACTIONS = ('sequential', 'parallel', 'only_cross', 'only_intra')


class VariantBlock(nn.Module):
    """A SPIN block with another aggregation and another order of its attentions.

    Args:
        block: A SPIN block; the variant is made of its parts and keeps their names.
        aggregation: Replaces the block's.
        interaction, top_n, own_values: See `SPINVariant`.
    """

    def __init__(
        self,
        block: SuperpixelInteractionBlock,
        aggregation: SuperpixelAggregation,
        interaction: str,
        top_n: int | None,
        own_values: str,
    ):
        super().__init__()
        self.interaction = interaction
        self.aggregation = aggregation
        if interaction != 'only_intra':
            self.cross_attention, self.cross_feed_forward = block.cross_attention, block.cross_feed_forward
        if interaction != 'only_cross':
            self.intra_attention, self.intra_feed_forward = block.intra_attention, block.intra_feed_forward
            self.intra_attention.num_pixels, self.intra_attention.own_values = top_n, own_values
        self.local_attention, self.local_feed_forward = block.local_attention, block.local_feed_forward

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        association = self.aggregation(x)
        if self.interaction == 'parallel':
            x = self.across(x, association) + self.inside(x, association) - x
        else:
            x = self.across(x, association) if self.interaction != 'only_intra' else x
            x = self.inside(x, association) if self.interaction != 'only_cross' else x
        x = self.local_attention(x, residual=True)
        return self.local_feed_forward(x, residual=True)

    def across(self, x: Tensor, association: Association) -> Tensor:
        """Cross-attention of pixels and superpixels (SPCA): (B, H, W, C) -> (B, H, W, C)."""
        x = x + self.cross_attention(x, association)
        return self.cross_feed_forward(x, residual=True)

    def inside(self, x: Tensor, association: Association) -> Tensor:
        """Attention inside superpixels (ISPA): (B, H, W, C) -> (B, H, W, C)."""
        x = self.intra_attention(x, association, residual=True)
        return self.intra_feed_forward(x, residual=True)


@ARCH_REGISTRY.register()
class SPINVariant(SPIN):
    """SPIN with switches; with their defaults it is SPIN.

    Weights have SPIN's names. With the same seed a variant starts with SPIN's weights, except that `only_cross` and
    `only_intra` leave those of the other attention out.

    Args:
        num_in_ch, num_out_ch, num_feat, num_block, num_heads, qk_dim, mlp_dim, stoken_size, upscale: See `SPIN`.
        num_iter: Association rounds; with patches and 'softmax' it has no effect.
        interaction: How a block uses superpixels. 'sequential': cross-attention (SPCA), then attention inside
            superpixels (ISPA). 'parallel': both see the block's input, and what they add is summed. 'only_cross',
            'only_intra': only one of them, and the local attention.
        aggregation: Which pixels can belong to a superpixel. 'superpixel': those of the cells around it. 'mixture': all
            pixels of the image, as in a mixture of Gaussians; takes time for all pixels x superpixels. 'patch': exactly
            those of its cell, whatever they look like.
        top_n: Pixels of a superpixel in ISPA (the paper's N). None: the area of its cell; with patches the whole cell.
        differentiable: Whether gradients flow through the association and the centroids; constants in upstream's code.
        association: 'softmax' of -d^2 over the neighbouring superpixels, as in upstream's code, or 'exponential',
            exp(-d^2), as in Eq. 3.
        position_weight: Weight in d of a distance of one cell, as in SSN, at least 0. 0: features only.
        own_values: Pixels whose own value enters the result of ISPA: 'all', as in upstream's code, or 'ignored', those
            that no superpixel selected, as in the paper.

    Raises:
        ValueError: An argument breaks its rule, or has no effect in this combination.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 40,
        num_block: int = 8,
        num_heads: int = 1,
        qk_dim: int = 24,
        mlp_dim: int = 72,
        stoken_size: Sequence[int] | None = None,
        upscale: int = 4,
        num_iter: int = 3,
        interaction: str = 'sequential',
        aggregation: str = 'superpixel',
        top_n: int | None = None,
        differentiable: bool = False,
        association: str = 'softmax',
        position_weight: float = 0.0,
        own_values: str = 'all',
    ):
        super().__init__(
            num_in_ch, num_out_ch, num_feat, num_block, num_heads, qk_dim, mlp_dim, stoken_size, upscale, num_iter
        )
        check(one_of(*INTERACTIONS), interaction=interaction)
        check(one_of(*REACH), aggregation=aggregation)
        check(whole(1, None), top_n=top_n)
        check(FLAG, differentiable=differentiable)
        check(one_of('softmax', 'exponential'), association=association)
        check(one_of('all', 'ignored'), own_values=own_values)
        # A pixel belongs to its patch with weight 1, or nothing reads the weight.
        weightless = aggregation == 'patch' and (association == 'softmax' or interaction == 'only_intra')
        idle = {
            'top_n': top_n is not None and (aggregation == 'patch' or interaction == 'only_cross'),
            'own_values': own_values != 'all' and interaction == 'only_cross',
            'differentiable': differentiable and (weightless or interaction == 'only_intra'),
            'association': association != 'softmax' and weightless,
            'position_weight': position_weight and weightless,
        }
        if names := [name for name, has_no_effect in idle.items() if has_no_effect]:
            raise ValueError(
                f'{" and ".join(names)} would have no effect with {interaction=}, {aggregation=}, {association=}; '
                f'remove {"it" if len(names) == 1 else "them"}'
            )
        equations = {'differentiable': differentiable, 'kind': association, 'position_weight': position_weight}
        self.blocks = nn.ModuleList(
            VariantBlock(
                block,
                SuperpixelAggregation(block.aggregation.stoken_size, num_iter, REACH[aggregation], **equations),
                interaction,
                top_n,
                own_values,
            )
            for block in cast(Iterable[SuperpixelInteractionBlock], self.blocks)
        )


def _interaction(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Of the variants only those without one of the attentions have other tensors than SPIN."""
    kinds = [kind for kind in ('cross', 'intra') if f'blocks.0.{kind}_attention.to_qkv.weight' in weights]
    return {'interaction': f'only_{kinds[0]}'} if len(kinds) == 1 else {}


def _arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return FORMAT.arguments(weights) | _interaction(weights)


register_format(
    dataclasses.replace(
        FORMAT,
        arch=SPINVariant,
        name='SPINVariant',
        registered='SPINVariant',
        onnx=Onnx(),
        recipe=None,  # trained as SPIN: options/ablation
        arguments=_arguments,
        untold={
            **FORMAT.untold,
            'interaction': 'sequential',
            'aggregation': 'superpixel',
            'top_n': None,
            'differentiable': False,
            'association': 'softmax',
            'position_weight': 0.0,
            'own_values': 'all',
        },
        detect=lambda weights: 'blocks.0.local_attention.to_qkv.weight' in weights and bool(_interaction(weights)),
        layout=None,
        published=(),
    )
)
