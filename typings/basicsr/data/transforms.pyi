from typing import Any

import numpy as np

# Without flows and return_status; of one image it returns the image alone.
def augment(imgs: list[np.ndarray], hflip: bool = True, rotation: bool = True) -> list[np.ndarray]: ...
def paired_random_crop(
    img_gts: Any, img_lqs: Any, gt_patch_size: int, scale: int, gt_path: str | None = None
) -> tuple[Any, Any]: ...
