"""Padding of images whose size a network does not take."""

import torch.nn.functional as F
from torch import Tensor


def pad_to(x: Tensor, height: int, width: int) -> Tensor:
    """Extends an image on the right and at the bottom: by reflection as far as it reaches, then by its last pixels.

    Args:
        x: (B, C, H, W), H, W >= 1.
        height: The height to reach; a larger one stays as it is.
        width: The width to reach; a larger one stays as it is.

    Returns:
        (B, C, max(H, height), max(W, width)); `x` itself where nothing is missing.

    Example:
        >>> import torch
        >>> pad_to(torch.tensor([[[[1.0, 2.0]]]]), 1, 4)
        tensor([[[[1., 2., 1., 1.]]]])
    """
    missing_rows, missing_columns = max(height - x.shape[2], 0), max(width - x.shape[3], 0)
    if not missing_rows and not missing_columns:
        return x
    # A reflection does not repeat the border, so it has one pixel fewer than the image.
    rows, columns = min(missing_rows, x.shape[2] - 1), min(missing_columns, x.shape[3] - 1)
    x = F.pad(x, (0, columns, 0, rows), mode='reflect')
    return F.pad(x, (0, missing_columns - columns, 0, missing_rows - rows), mode='replicate')


def pad_to_multiple(x: Tensor, multiple: int, zeros: bool = False) -> Tensor:
    """Extends an image (B, C, H, W), as `pad_to` or with zeros, to the next sides that `multiple` divides.

    Example:
        >>> import torch
        >>> pad_to_multiple(torch.rand(1, 3, 5, 8), 4).shape
        torch.Size([1, 3, 8, 8])
    """
    # Not -side % multiple, with which torch.compile fails for sides that vary.
    height, width = ((side + multiple - 1) // multiple * multiple for side in x.shape[2:])
    if zeros:
        return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))
    return pad_to(x, height, width)
