"""SRModel that also starts from the authors' checkpoints of SPIN, SAN and RCAN."""

from collections.abc import Mapping

from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from spinsr import convert
from spinsr.option_files import OptionError


@MODEL_REGISTRY.register()
class SpinsrModel(SRModel):
    """BasicSR's SRModel, with one difference: `pretrain_network_g` may be an official file.

    A network of another plugin, or of BasicSR, is loaded by BasicSR.

    Args:
        opt: BasicSR's options.
    """

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = 'params'
    ) -> None:
        """Loads a file into a network; the authors' files of SPIN, SAN and RCAN are converted first.

        Args:
            net: The network.
            load_path: The file: BasicSR's, or the authors'.
            strict: Every name and shape must agree; else what does not agree is left as it is.
            param_key: Which state dict of BasicSR's file; 'params' where there is none of this name.

        Raises:
            OptionError: If the file is no checkpoint of this network.
        """
        bare = self.get_bare_model(net)
        arch = type(bare).__name__
        if not type(bare).__module__.startswith('spinsr.archs.') or arch not in convert.ARCHS:
            super().load_network(net, load_path, strict, param_key)
            return
        logger = get_root_logger()
        try:
            checkpoint = convert.read_checkpoint(load_path)
            if not isinstance(checkpoint, Mapping):
                raise TypeError(f'a checkpoint must be a mapping, got {type(checkpoint).__name__}')
            if param_key not in checkpoint and 'params' in checkpoint:
                logger.info(f'{load_path} has no {param_key}: its params are loaded.')
                param_key = 'params'
            state = _state_dict(checkpoint.get(param_key, checkpoint), arch, strict)
        except (ValueError, TypeError, OSError) as error:
            raise OptionError(f'path:pretrain_network_g: {load_path} cannot be loaded into {arch}: {error}') from error
        logger.info(f'Loading {arch} model from {load_path}, with param key: [{param_key}].')
        self._print_different_keys_loading(bare, state, strict)
        bare.load_state_dict(state, strict=strict)


def _state_dict(state_dict: Mapping, arch: str, strict: bool) -> dict[str, Tensor]:
    try:
        return convert.convert_state_dict(state_dict, arch)
    except ValueError:
        if strict:
            raise
        # A warm start from a network with other parts: what has the same name is taken, as in BasicSR.
        return convert.unwrap(state_dict)
