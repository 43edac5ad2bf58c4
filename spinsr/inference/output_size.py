"""Sizes of outputs other than the network's own; importing this module does not import torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class OutputSize:
    """The size of an output; the aspect ratio always stays. Without any of these it is the network's own.

    Attributes:
        outscale: Factor of both sides.
        width: In pixels.
        height: In pixels; with `width` too, the largest size that fits into both.
        max_side: Limit of the longer side, in pixels; smaller outputs stay as they are.

    Raises:
        ValueError: A value is not positive or not below 2^31, or `outscale` or `max_side` is combined with another.
    """

    outscale: float | None = None
    width: int | None = None
    height: int | None = None
    max_side: int | None = None

    def __post_init__(self):
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name, value in given.items():
            if not 0 < value < 2**31:  # NaN too
                raise ValueError(f'{name} must be positive and below 2^31, got {value}')
        if len(given) > 1 and given.keys() != {'width', 'height'}:
            raise ValueError(f'only width and height go together, got {", ".join(given)}: leave out all but one')

    @property
    def label(self) -> str:
        """For the name of an output: x1.5, w1920, h1080, w1920h1080, max2048; '' for the network's own size."""
        if self.outscale:
            return f'x{self.outscale:g}'
        if self.max_side:
            return f'max{self.max_side}'
        return f'w{self.width}' * bool(self.width) + f'h{self.height}' * bool(self.height)

    def of(self, height: int, width: int, scale: int) -> tuple[int, int]:
        """Height and width of the output.

        Args:
            height: Of the input.
            width: Of the input.
            scale: Of the network.
        """
        if self.outscale:
            factor = self.outscale
        elif self.max_side:
            factor = min(scale, self.max_side / max(height, width))
        elif self.width or self.height:
            sides = ((self.width, width), (self.height, height))
            factor = min(wanted / side for wanted, side in sides if wanted)
        else:
            factor = scale
        return max(round(height * factor), 1), max(round(width * factor), 1)
