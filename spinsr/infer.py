"""An image through a network."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn


def upscale(image: np.ndarray, net: nn.Module, *, self_ensemble: bool = False) -> np.ndarray:
    """Super-resolves one image.

    Args:
        image: uint8 (H, W, 3), RGB; stays as it is.
        net: A network from `load`, or any module from (1, 3, H, W) to (1, 3, scale*H, scale*W) in [0, 1].
        self_ensemble: As for `super_resolve`.

    Returns:
        uint8 (scale*H, scale*W, 3), RGB: the output times 255, rounded and clipped.

    Raises:
        TypeError: The image is not uint8.
        ValueError: The image has another shape.

    Example:
        >>> from spinsr.network import load
        >>> net = load('SPIN', scale=2, weights=None, num_block=1, stoken_size=(12,))
        >>> upscale(np.zeros((5, 7, 3), np.uint8), net).shape
        (10, 14, 3)
    """
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise TypeError(f'image must be uint8, got {image.dtype}')
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f'image must have the shape (H, W, 3), got {image.shape}')
    x = torch.from_numpy(image.copy()).permute(2, 0, 1).unsqueeze(0) / 255
    y = super_resolve(x, net, self_ensemble=self_ensemble)
    return (y[0] * 255).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def super_resolve(x: Tensor, net: nn.Module, *, self_ensemble: bool = False) -> Tensor:
    """Puts one image through a network, without gradients, in eval mode.

    Args:
        x: (1, C, H, W), float, [0, 1]; stays as it is.
        net: As for `upscale`; goes back to the mode it was in.
        self_ensemble: Take the mean over the 8 dihedral transforms of the image, each output transformed back
            (the `+` of RCAN+ and SAN+).

    Returns:
        (1, C, scale*H, scale*W), float32, on the CPU; neither rounded nor clipped.
    """
    reference = next(net.parameters(), x)
    x = x.to(reference.device, reference.dtype)
    was_training = net.training
    net.eval()
    try:
        with torch.inference_mode():
            if not self_ensemble:
                return net(x).float().cpu()
            outputs = [_back(net(transformed).float(), *how) for transformed, how in _dihedral(x)]
            return torch.stack(outputs).mean(0).cpu()
    finally:
        net.train(was_training)


def _dihedral(x: Tensor) -> Iterator[tuple[Tensor, tuple[bool, tuple[int, ...]]]]:
    """The 8 transforms of an image, each with what it did: transposed or not, then the flipped dimensions."""
    for transposed in (False, True):
        for flipped in ((), (2,), (3,), (2, 3)):
            yield (x.transpose(2, 3) if transposed else x).flip(flipped).contiguous(), (transposed, flipped)


def _back(y: Tensor, transposed: bool, flipped: tuple[int, ...]) -> Tensor:
    y = y.flip(flipped)
    return y.transpose(2, 3) if transposed else y
