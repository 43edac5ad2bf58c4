"""An image through a network."""

import logging
import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

logger = logging.getLogger('spinsr')


def load(
    arch: str = 'SPIN',
    scale: int = 4,
    weights: str | os.PathLike | Mapping | None = None,
    device: str | torch.device = 'cpu',
    **arch_args,
) -> nn.Module:
    """Builds a network, with weights, ready for `upscale`.

    Args:
        arch: 'SPIN', 'SAN', 'RCAN' (the one of spinsr), or any other name in BasicSR's ARCH_REGISTRY.
        scale: Upscaling factor, the arch's `upscale`.
        weights: A .pth, .pt or .safetensors file, or a state dict: spinsr's or BasicSR's (`params_ema` before `params`)
            or the authors' own, which is converted. None leaves the random initialisation.
        device: Where the network goes.
        **arch_args: Further arguments of the arch; an unknown one is a TypeError.

    Returns:
        The network in eval mode.

    Raises:
        ValueError: Unknown arch or scale, or weights that do not fit.
        FileNotFoundError: No such weights file.

    Example:
        >>> net = load('SPIN', scale=2, num_block=1, stoken_size=(12,))
        >>> net.upscale
        2
    """
    from spinsr import convert
    from spinsr.archs import ARCH_REGISTRY

    name = 'RCAN_spinsr' if arch == 'RCAN' else arch
    if name not in ARCH_REGISTRY:
        raise ValueError(f'arch must be SPIN, SAN, RCAN or a name in ARCH_REGISTRY, got {arch!r}')
    net = ARCH_REGISTRY.get(name)(upscale=scale, **arch_args)
    if weights is None:
        logger.warning('%s has no weights: the network is untrained', arch)
    else:
        state_dict = weights if isinstance(weights, Mapping) else convert.read_checkpoint(weights)
        own = name.removesuffix('_spinsr') in convert.ARCHS
        state_dict = convert.convert_state_dict(state_dict, name) if own else convert.unwrap(state_dict)
        try:
            net.load_state_dict(state_dict)
        except RuntimeError as error:
            source = 'the state dict' if isinstance(weights, Mapping) else os.fspath(weights)
            raise ValueError(f'{source} does not fit {arch} with upscale={scale}: {error}') from error
    return net.to(device).eval()


def upscale(image: np.ndarray, net: nn.Module) -> np.ndarray:
    """Super-resolves one image.

    Args:
        image: uint8 (H, W, 3), RGB; stays as it is.
        net: A network from `load`, or any module from (1, 3, H, W) to (1, 3, scale*H, scale*W) in [0, 1].

    Returns:
        uint8 (scale*H, scale*W, 3), RGB: the output times 255, rounded and clipped.

    Raises:
        TypeError: The image is not uint8.
        ValueError: The image has another shape.

    Example:
        >>> net = load('SPIN', scale=2, num_block=1, stoken_size=(12,))
        >>> upscale(np.zeros((5, 7, 3), np.uint8), net).shape
        (10, 14, 3)
    """
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise TypeError(f'image must be uint8, got {image.dtype}')
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f'image must have the shape (H, W, 3), got {image.shape}')
    reference = next(net.parameters(), torch.zeros(()))
    x = torch.from_numpy(image.copy()).to(reference.device, reference.dtype)
    was_training = net.training
    net.eval()
    try:
        with torch.inference_mode():
            y = net(x.permute(2, 0, 1).unsqueeze(0) / 255)
            return (y[0].float() * 255).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().cpu().numpy()
    finally:
        net.train(was_training)
