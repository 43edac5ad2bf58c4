"""What spinsr knows of networks that BasicSR has: SwinIR, EDSR and ECBSR.

Their code is BasicSR's, which is imported when one of them is built. Without BasicSR that is an error which says how to
get it; the names of their tensors are known without it.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spinsr.convert import mean_shift, shapes
from spinsr.convert.recipe import DF2K, DIV2K, Recipe, Start, adam, halved_every, multistep
from spinsr.convert.registry import (
    ArchFormat,
    Onnx,
    PublishedResult,
    Sizes,
    Source,
    bare,
    of_edsr,
    register_format,
    under,
)

_FROM_X2 = Start(
    scale=2,
    comment='x3 and x4 start from the x2 model, so train that first. What has another shape is initialised randomly. '
    'To train from scratch: ~ and strict_load_g: true.',
)


def _swinir_arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    groups = range(shapes.count(weights, 'layers.{}.'))
    blocks = [f'layers.{group}.residual_group.blocks' for group in groups]
    tables = [weights[f'{block}.0.attn.relative_position_bias_table'].shape for block in blocks]
    embed_dim, channels = weights['conv_first.weight'].shape[:2]
    window = (math.isqrt(tables[0][0]) + 1) // 2
    upsampler, upscale = _swinir_upsampler(weights)
    return {
        **_swinir_size(weights, window),
        'in_chans': channels,
        'embed_dim': embed_dim,
        'depths': tuple(shapes.count(weights, f'{block}.{{}}.') for block in blocks),
        'num_heads': tuple(heads for _, heads in tables),
        'window_size': window,
        'mlp_ratio': shapes.ratio(len(weights[f'{blocks[0]}.0.mlp.fc1.weight']), embed_dim),
        'qkv_bias': f'{blocks[0]}.0.attn.qkv.bias' in weights,
        'ape': 'absolute_pos_embed' in weights,
        'patch_norm': 'patch_embed.norm.weight' in weights,
        'upscale': upscale,
        'upsampler': upsampler,
        'resi_connection': '3conv' if 'conv_after_body.0.weight' in weights else '1conv',
    }


def _swinir_size(weights: Mapping[str, Tensor], window: int) -> dict[str, int]:
    """`img_size`, the images of training, for which the file holds the masks of the shifted windows."""
    masks = (value for name, value in weights.items() if name.endswith('.attn_mask'))
    if (mask := next(masks, None)) is None:
        return {}
    side = math.isqrt(len(mask))
    return {'img_size': side * window} if side**2 == len(mask) else {}


def _swinir_upsampler(weights: Mapping[str, Tensor]) -> tuple[str, int]:
    if 'conv_up1.weight' in weights:
        return 'nearest+conv', 4
    if 'conv_before_upsample.0.weight' in weights:
        return 'pixelshuffle', shapes.stages(weights) if 'upsample.0.weight' in weights else 1
    if 'upsample.0.weight' in weights:
        return 'pixelshuffledirect', shapes.shuffle(weights, 'upsample.0.weight')
    return '', 1


_BLOCK = 'layers.{layer}.residual_group.blocks.{block}.'
_ICCVW = 'ICCVW 2021, github.com/JingyunLiang/SwinIR; trained on DIV2K'
_ICCVW_DF2K = 'ICCVW 2021, github.com/JingyunLiang/SwinIR; trained on DF2K'

register_format(
    ArchFormat(
        arch='basicsr.archs.swinir_arch:SwinIR',
        # BasicSR has the authors' names.
        names=(
            '{conv:conv_first|conv_last|conv_up1|conv_up2|conv_hr|conv_after_body}.{end}',
            '{conv:conv_after_body|conv_before_upsample|upsample}.{number}.{end}',
            'patch_embed.norm.{end}',
            'absolute_pos_embed',
            'norm.{end}',
            _BLOCK + '{part:norm1|norm2|mlp.fc1|mlp.fc2|attn.qkv|attn.proj}.{end}',
            _BLOCK + '{part:attn_mask|attn.relative_position_bias_table|attn.relative_position_index}',
            'layers.{layer}.conv.{end}',
            'layers.{layer}.conv.{number}.{end}',
        ),
        arguments=_swinir_arguments,
        defaults={
            'embed_dim': 180,
            'depths': (6,) * 6,
            'num_heads': (6,) * 6,
            'window_size': 8,
            'mlp_ratio': 2,
            'upsampler': 'pixelshuffle',
        },
        configurations={
            'SwinIR-light': {
                'embed_dim': 60,
                'depths': (6,) * 4,
                'num_heads': (6,) * 4,
                'upsampler': 'pixelshuffledirect',
            },
            'SwinIR-real': {'upsampler': 'nearest+conv'},
            'SwinIR-real-large': {
                'embed_dim': 240,
                'depths': (6,) * 9,
                'num_heads': (8,) * 9,
                'upsampler': 'nearest+conv',
                'resi_connection': '3conv',
            },
        },
        untold={'img_range': 1.0, 'qk_scale': None},
        layout=under('params'),
        sizes=Sizes(minimum=8, multiple=8),
        published=(
            PublishedResult(2, 878_000, '38.14 33.86 32.31 32.76 39.12', _ICCVW, 'SwinIR-light'),
            PublishedResult(3, 886_000, '34.62 30.54 29.20 28.66 33.98', _ICCVW, 'SwinIR-light'),
            PublishedResult(4, 897_000, '32.44 28.77 27.69 26.47 30.92', _ICCVW, 'SwinIR-light'),
            PublishedResult(2, 11_800_000, '38.35 34.14 32.44 33.40 39.60', _ICCVW),
            PublishedResult(3, 11_800_000, '34.89 30.77 29.37 29.29 34.74', _ICCVW),
            PublishedResult(4, 11_800_000, '32.72 28.94 27.83 27.07 31.67', _ICCVW),
            PublishedResult(2, 11_800_000, '38.42 34.46 32.53 33.81 39.92', _ICCVW_DF2K, 'SwinIR (DF2K)', 'SwinIR'),
            PublishedResult(3, 11_800_000, '34.97 30.93 29.46 29.75 35.12', _ICCVW_DF2K, 'SwinIR (DF2K)', 'SwinIR'),
            PublishedResult(4, 11_800_000, '32.92 29.09 27.92 27.45 32.03', _ICCVW_DF2K, 'SwinIR (DF2K)', 'SwinIR'),
        ),
        recipe=Recipe(
            about="The recipe is the authors': 500,000 iterations, 2e-4 halved at 250,000, 400,000, 450,000 and "
            '475,000, EMA. SwinIR: LR patches of 64x64, batch 32, DIV2K and Flickr2K (on DIV2K alone they take 48x48, '
            'with img_size 48). SwinIR-light: LR patches of 64x64, batch 64, DIV2K.',
            patch=64,
            batch=32,
            data=DF2K,
            ema_decay=0.999,
            optim_g=adam(2e-4),
            scheduler=multistep(250_000, 400_000, 450_000, 475_000),
            total_iter=500_000,
            start=_FROM_X2,
            by_configuration={
                'SwinIR-light': {'batch': 64, 'data': DIV2K},
                'SwinIR-real': {'scales': ()},
                'SwinIR-real-large': {'scales': ()},
            },
            comments={'img_size': 'the LR patches'},
        ),
        source=Source(
            'SwinIR: Image Restoration Using Swin Transformer (Liang et al., ICCVW 2021)',
            2021,
            'https://github.com/JingyunLiang/SwinIR',
            'Apache-2.0',
            weights='release',
        ),
    )
)


def _edsr_arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    told = shapes.images(weights)
    return {
        **told,
        'num_block': shapes.count(weights, 'body.{}.'),
        # No shape tells it; of the two published networks the large one needs it.
        'res_scale': 0.1 if told['num_feat'] == _LARGE['num_feat'] else 1,
        'upscale': shapes.stages(weights),
    }


def _without_mean(ours: dict[str, Tensor], official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    mean = mean_shift.take_frozen()(ours, official)['mean'].flatten()
    if mean.shape != (3,) or not torch.allclose(mean.cpu().float(), mean_shift.DIV2K_MEAN, rtol=1e-6):
        raise ValueError(f"sub_mean must subtract the mean of DIV2K, a constant of BasicSR's EDSR, got {mean.tolist()}")
    return ours


_LARGE = {'num_feat': 256, 'num_block': 32, 'res_scale': 0.1}
_IPT = 'CVPRW 2017, as cited by github.com/huawei-noah/Pretrained-IPT; trained on DIV2K'
_ESRGAN = 'CVPRW 2017, as cited by github.com/xinntao/ESRGAN; trained on DIV2K'
_SRTRANSGAN = 'CVPRW 2017, as cited by github.com/nbaghel777/SRTransGAN; trained on DIV2K'
_OMNISR = 'CVPRW 2017, as cited by Omni-SR, CVPR 2023; trained on DIV2K'

register_format(
    ArchFormat(
        arch='basicsr.archs.edsr_arch:EDSR',
        names=(
            ('sub_mean.{end}', None),
            ('add_mean.{end}', None),
            ('head.0.{end}', 'conv_first.{end}'),
            ('body.{block}.body.0.{end}', 'body.{block}.conv1.{end}'),
            ('body.{block}.body.2.{end}', 'body.{block}.conv2.{end}'),
            ('body.{num_block}.{end}', 'conv_after_body.{end}'),
            ('tail.0.{stage}.{end}', 'upsample.{stage}.{end}'),
            ('tail.1.{end}', 'conv_last.{end}'),
        ),
        arguments=_edsr_arguments,
        defaults={'num_in_ch': 3, 'num_out_ch': 3},
        configurations={'EDSR-baseline': {}, 'EDSR-large': _LARGE},
        official_arguments=lambda variant, official: of_edsr(
            official, n_resblocks='num_block', res_scale='res_scale', rgb_range='img_range'
        ),
        untold={'img_range': 255.0},
        # BasicSR's MSRResNet shares most names of the residual blocks.
        detect=lambda weights: (
            {'conv_after_body.weight', 'body.0.conv1.weight'} <= weights.keys()
            or {'head.0.weight', 'body.0.body.0.weight', 'tail.1.weight'} <= weights.keys()
        ),
        from_official=_without_mean,
        to_official=mean_shift.unfold_div2k,
        layout=bare,
        onnx=Onnx(sides=(2, None)),  # torch.export makes a constant of a side of 1
        published=(
            PublishedResult(2, 1_370_000, '37.99 33.57 32.16 31.98 -', _SRTRANSGAN, 'EDSR-baseline'),
            PublishedResult(3, 1_555_000, '34.37 30.28 29.09 28.15 33.45', _OMNISR, 'EDSR-baseline'),
            PublishedResult(4, 1_518_000, '32.09 28.58 27.57 26.04 30.35', _OMNISR, 'EDSR-baseline'),
            PublishedResult(2, 40_700_000, '38.11 33.92 32.32 32.93 -', _IPT, 'EDSR-large'),
            PublishedResult(3, 43_700_000, '34.65 30.52 29.25 28.80 -', _IPT, 'EDSR-large'),
            PublishedResult(4, 43_100_000, '32.46 28.80 27.71 26.64 31.02', _ESRGAN, 'EDSR-large'),
        ),
        recipe=Recipe(
            about="The recipe is the paper's: LR patches of 48x48, batch 16, 300,000 iterations, 1e-4 halved at "
            '200,000, L1; x3 and x4 from x2.',
            patch=48,
            batch=16,
            optim_g=adam(1e-4),
            scheduler=halved_every(200_000, 300_000),
            total_iter=300_000,
            start=_FROM_X2,
            by_configuration={'EDSR-baseline': {'scales': ()}},  # the same as EDSR here
            comments={'pixel_opt:loss_weight': "the authors' loss is on 0..255"},
        ),
        source=Source(
            'Enhanced Deep Residual Networks for Single Image Super-Resolution (Lim et al., CVPRW 2017)',
            2017,
            'https://github.com/sanghyun-son/EDSR-PyTorch',
            'MIT',
            weights='cloud drive',
        ),
    )
)


def _ecbsr_arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    num_block = shapes.count(weights, 'backbone.{}.') - 2
    num_channel, channels = weights['backbone.0.conv3x3.weight'].shape[:2]
    last = f'backbone.{num_block + 1}.conv3x3.weight'
    return {
        'num_in_ch': channels,
        'num_out_ch': channels,
        'num_block': num_block,
        'num_channel': num_channel,
        # No tensor belongs to the identity or to the other activations; all published networks are without them.
        'with_idt': False,
        'act_type': 'prelu' if 'backbone.0.act.weight' in weights else 'relu',
        'scale': shapes.shuffle(weights, last, 'backbone.0.conv3x3.weight'),
    }


_CONVS = 'backbone.{block}.'
_CFSR = 'ACM MM 2021, as cited by github.com/Aitical/CFSR; a network for Y alone, parameters after conversion'
_PCEVA = (
    'as drawn in a figure by the script in github.com/ECNUSR/PCEVA; a network for Y alone, parameters counted after '
    'conversion'
)
_ETDS = (
    'trained by the authors of ETDS, logs in github.com/ECNUSR/ETDS; HR cropped to multiples of 12, parameters '
    'counted after conversion'
)

register_format(
    ArchFormat(
        arch='basicsr.archs.ecbsr_arch:ECBSR',
        # BasicSR has the authors' names.
        names=(
            _CONVS + 'conv3x3.{end}',
            _CONVS + 'conv1x1_3x3.{tensor:k0|b0|k1|b1}',
            _CONVS + '{branch:conv1x1_sbx|conv1x1_sby|conv1x1_lpl}.{tensor:k0|b0|scale|bias|mask}',
            _CONVS + 'act.weight',
        ),
        arguments=_ecbsr_arguments,
        defaults={
            'num_in_ch': 3,
            'num_out_ch': 3,
            'num_block': 4,
            'num_channel': 16,
            'with_idt': False,
            'act_type': 'prelu',
        },
        configurations={
            'ECBSR-M4C16': {},
            'ECBSR-M4C8': {'num_channel': 8},
            'ECBSR-M10C16': {'num_block': 10},
            'ECBSR-M10C32': {'num_block': 10, 'num_channel': 32},
            'ECBSR-M16C64': {'num_block': 16, 'num_channel': 64},
        },
        onnx=Onnx(sides=(2, None)),
        published=(
            PublishedResult(2, 11_548, '37.18 32.79 31.61 30.18 -', _ETDS, 'ECBSR-M4C16', protocol='y_mod12'),
            PublishedResult(3, 13_723, '33.07 29.53 28.57 26.61 -', _ETDS, 'ECBSR-M4C16', protocol='y_mod12'),
            PublishedResult(4, 16_768, '30.87 27.80 27.06 24.75 -', _ETDS, 'ECBSR-M4C16', protocol='y_mod12'),
            PublishedResult(2, 2_748, '- - - 29.68 -', _PCEVA, 'ECBSR-M4C8'),
            PublishedResult(2, 94_308, '- - - 31.25 -', _PCEVA, 'ECBSR-M10C32'),
            PublishedResult(2, 594_884, '- - - 31.71 -', _PCEVA, 'ECBSR-M16C64'),
            PublishedResult(4, 603_000, '31.92 28.34 27.48 25.81 -', _CFSR, 'ECBSR-M16C64'),
        ),
        recipe=Recipe(
            about="The recipe is that of the authors' option files: LR patches of 64x64, batch 32, 1,000 epochs of "
            '1,600 iterations, 5e-4. Their networks take Y alone; here they take RGB, which is our choice.',
            patch=64,
            batch=32,
            optim_g=adam(5e-4),
            scheduler=multistep(),
            total_iter=1_600_000,
            by_configuration={'ECBSR-M4C16': {'scales': ()}},  # the same as ECBSR here
        ),
        source=Source(
            'Edge-oriented Convolution Block for Real-time Super Resolution on Mobile Devices (Zhang et al., '
            'ACM MM 2021)',
            2021,
            'https://github.com/xindongzhang/ECBSR',
            weights='none',
        ),
    )
)
