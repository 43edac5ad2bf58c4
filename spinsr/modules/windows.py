"""Windows that cover an image without overlap: contiguous, or dilated over the whole image."""

import torch
from torch import Tensor


def to_windows(x: Tensor, rows: int, columns: int, dilated: bool = False) -> Tensor:
    """Cuts images into windows.

    Args:
        x: (B, C, H, W).
        rows, columns: Size of a window; they divide H and W.
        dilated: Neighbours in a window are H / rows and W / columns pixels apart, so that every window spans the image.

    Returns:
        (B * windows, C, rows, columns), the windows of an image in raster order of their first pixels.

    Example:
        >>> import torch
        >>> to_windows(torch.arange(4).view(1, 1, 1, 4), 1, 2).flatten().tolist()
        [0, 1, 2, 3]
        >>> to_windows(torch.arange(4).view(1, 1, 1, 4), 1, 2, dilated=True).flatten().tolist()
        [0, 2, 1, 3]
    """
    batch, channels, height, width = x.shape
    if dilated:
        x = x.reshape(batch, channels, rows, height // rows, columns, width // columns).permute(0, 3, 5, 1, 2, 4)
    else:
        x = x.reshape(batch, channels, height // rows, rows, width // columns, columns).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, channels, rows, columns)


def from_windows(x: Tensor, height: int, width: int, dilated: bool = False) -> Tensor:
    """The inverse of `to_windows`: (B * windows, C, rows, columns) -> (B, C, height, width)."""
    _, channels, rows, columns = x.shape
    x = x.reshape(-1, height // rows, width // columns, channels, rows, columns)
    x = x.permute(0, 3, 4, 1, 5, 2) if dilated else x.permute(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, channels, height, width)


def shift_mask(height: int, width: int, window_size: int, like: Tensor) -> Tensor:
    """What to add to the logits of an image that is rolled by half a window before it is cut.

    Args:
        height, width: Of the image; `window_size` divides them.
        window_size: Side of the windows.
        like: Gives device and type.

    Returns:
        (windows, 1, P, P): -100 for pairs of pixels of a window that only the roll has brought together, else 0.

    Example:
        >>> shift_mask(2, 4, 2, torch.empty(0))[:, 0, 0].tolist()
        [[0.0, 0.0, -100.0, -100.0], [0.0, -100.0, -100.0, -100.0]]
    """
    labels = []
    for side in (height, width):
        along = torch.arange(side, device=like.device)
        labels.append((along >= side - window_size).long() + (along >= side - window_size // 2).long())
    regions = 3 * labels[0][:, None] + labels[1]  # (H, W)
    regions = to_windows(regions[None, None], window_size, window_size).flatten(1)  # (windows, P)
    return -100.0 * (regions[:, None] != regions[:, :, None]).to(like.dtype)[:, None]
