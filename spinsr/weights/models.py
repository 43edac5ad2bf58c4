"""The networks with weights that come with spinsr, by the names that --model takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spinsr.utils.text import nearest, printable
from spinsr.weights import DEFAULT_SCALE, FOLDER

CLEAN = 'clean images'


@dataclass(frozen=True, kw_only=True)
class Model:
    """A shipped network at one scale. The numbers are those of the model card, spinsr/weights/README.md.

    Attributes:
        name: What --model takes; the same at every scale.
        arch: The network.
        scale: Upscaling factor.
        file: Name of the weights in spinsr/weights.
        parameters: Trained numbers.
        multiply_adds: For an output of 1280x720.
        psnr: dB on Y (`y_crop_scale`) by benchmark, from LR that was reduced bicubically, whatever the network was
            trained for.
        bf16_loss: What bf16 costs in dB on Y, the larger of the means over Set5 and Set14; rounded up.
        trained_for: Its input images, in words.
        licence: Of the weights, in short.
    """

    name: str
    arch: str
    scale: int
    file: str
    parameters: int
    multiply_adds: float
    psnr: Mapping[str, float]
    bf16_loss: float
    trained_for: str = CLEAN
    licence: str = 'research and education'

    @property
    def path(self) -> Path:
        """The weights."""
        return FOLDER / self.file


def _spin(scale: int, parameters: int, multiply_adds: float, set5: float, set14: float, bf16_loss: float) -> Model:
    return Model(
        name='spin',
        arch='SPIN',
        scale=scale,
        file=f'SPIN_x{scale}.safetensors',
        parameters=parameters,
        multiply_adds=multiply_adds,
        psnr={'Set5': set5, 'Set14': set14},
        bf16_loss=bf16_loss,
    )


RCAN_LIGHT = Model(
    name='rcan-light',
    arch='RCAN',
    scale=4,
    file='RCAN_x4_light.safetensors',
    parameters=1_374_123,
    multiply_adds=89.0e9,
    psnr={'Set5': 32.007, 'Set14': 28.444},
    bf16_loss=0.007,
)
PHOTO = Model(
    name='photo',
    arch='SPIN',
    scale=4,
    file='SPIN_x4_photo.safetensors',
    parameters=555_035,
    multiply_adds=88.7e9,
    psnr={'Set5': 30.11, 'Set14': 27.21},
    bf16_loss=0.005,
    trained_for='photographs with JPEG artefacts, noise, blur',
)
MODELS = (
    _spin(2, 497_275, 593.9e9, 37.843, 33.393, 0.01),
    _spin(3, 569_475, 174.4e9, 34.217, 30.268, 0.005),
    _spin(4, 555_035, 88.7e9, 32.032, 28.506, 0.004),
    RCAN_LIGHT,
    PHOTO,
)


def find_model(name: str, scale: int | None = None) -> Model:
    """The shipped network of this name and scale.

    Args:
        name: As 'spin'.
        scale: Upscaling factor; None means 4, or the only scale of the network.

    Raises:
        ValueError: No shipped network has this name and scale.
    """
    same = {model.scale: model for model in MODELS if model.name == name}
    if not same:
        hint = nearest(name, sorted({model.name for model in MODELS}))
        raise ValueError(f'unknown model {printable(repr(name))}; {hint}')
    if scale is None:
        scale = next(iter(same)) if len(same) == 1 else DEFAULT_SCALE
    if scale not in same:
        known = f'the scales {", ".join(map(str, same))}' if len(same) > 1 else f'only the scale {next(iter(same))}'
        raise ValueError(f'the model {name} has {known}, got {scale}')
    return same[scale]
