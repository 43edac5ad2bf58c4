"""Superpixel attention and second-order statistics as plain functions on tensors; needs torch and nothing else.

Pixels are tokens (B, H, W, C) throughout (channels-last). Every op has a `reference` backend, the dense formulation as
the papers write it (in float64 the oracle of the tests), and a `torch` backend, sparse and fast on any device. The
association, the pooling and the attention within superpixels and windows also have Triton kernels. The argument
`backend` or the environment variable SPINSR_OPS_BACKEND chooses; see `spinsr.ops.common.backend`.
"""

from spinsr.ops.association import associate
from spinsr.ops.association.types import Association, DenseAssociation, MixtureAssociation, SparseAssociation
from spinsr.ops.attention import intra_superpixel_attention, superpixel_cross_attention, window_attention
from spinsr.ops.common.backend import BACKENDS, resolve_backend
from spinsr.ops.common.grid import Grid, superpixel_grid
from spinsr.ops.covariance import covariance, sqrtm_newton_schulz
from spinsr.ops.layers.feed_forward import gated_feed_forward
from spinsr.ops.layers.projection import norm_project
from spinsr.ops.layers.upsampler import upsampling_tail
from spinsr.ops.pooling import pool
from spinsr.ops.top_n import top_n

__all__ = [
    'BACKENDS',
    'Association',
    'DenseAssociation',
    'Grid',
    'MixtureAssociation',
    'SparseAssociation',
    'associate',
    'covariance',
    'gated_feed_forward',
    'intra_superpixel_attention',
    'norm_project',
    'pool',
    'resolve_backend',
    'sqrtm_newton_schulz',
    'superpixel_cross_attention',
    'superpixel_grid',
    'top_n',
    'upsampling_tail',
    'window_attention',
]
