"""The networks of spinsr in ComfyUI, as a folder of custom_nodes.

Importing it makes them known to spandrel, so that ComfyUI's own "Load Upscale Model" takes their files. The node
"Upscale Image (spinsr)" puts the whole image through a network, where ComfyUI's own node cuts tiles: SPIN and SAN look
at the whole image.
"""

import json
from pathlib import Path

import torch

import spinsr.spandrel
from spinsr.inference.upscale import super_resolve_colours

# Arguments of a network that no shape in its file determines, as {"SPIN": {"stoken_size": [12, 16]}}.
ARCH_ARGS = Path(__file__).with_name('arch_args.json')


class UpscaleImage:
    """Puts each image through a network from "Load Upscale Model", whole or in tiles that overlap."""

    CATEGORY = 'image/upscaling'
    DESCRIPTION = 'Upscales the whole image at once; smaller tiles are used if memory runs out.'
    RETURN_TYPES = ('IMAGE',)
    FUNCTION = 'upscale'

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """What ComfyUI shows."""
        tile = {'default': 0, 'min': 0, 'max': 8192, 'tooltip': 'side of a tile in pixels, from 32; 0: no tiles'}
        ensemble = {'default': False, 'tooltip': 'mean over 8 flips and rotations: 8 times slower, slightly better'}
        return {
            'required': {
                'upscale_model': ('UPSCALE_MODEL',),
                'image': ('IMAGE',),
                'tile': ('INT', tile),
                'self_ensemble': ('BOOLEAN', ensemble),
            }
        }

    def upscale(self, upscale_model, image: torch.Tensor, tile: int = 0, self_ensemble: bool = False) -> tuple:
        """Upscales a batch.

        Args:
            upscale_model: spandrel's descriptor of a network.
            image: (B, H, W, 3), or 4 with alpha; RGB in [0, 1].
            tile: Side of a tile in pixels; 0 for none.
            self_ensemble: See `spinsr.inference.upscale.super_resolve`.

        Returns:
            The images, (B, scale*H, scale*W, 3 or 4), in [0, 1].

        Raises:
            ValueError: `tile` is from 1 to 31.
        """
        import comfy.utils
        from comfy import model_management

        net = upscale_model.model
        progress = comfy.utils.ProgressBar(len(image))
        model_management.free_memory(model_management.module_size(net), model_management.get_torch_device())
        upscale_model.to(model_management.get_torch_device())
        try:
            upscaled = []
            for one in image.movedim(-1, 1).split(1):
                colours, alpha = one[:, :3], one[:, 3:]
                out = super_resolve_colours(colours.float(), net, tile=tile or None, self_ensemble=self_ensemble)
                if alpha.shape[1]:
                    large = torch.nn.functional.interpolate(alpha.to(out), out.shape[2:], mode='bicubic')
                    out = torch.cat([out, large], 1)
                upscaled.append(out.clamp(0, 1).movedim(1, -1))
                progress.update(1)
        finally:
            upscale_model.to(model_management.unet_offload_device())
        return (torch.cat(upscaled).to(model_management.intermediate_device()),)


spinsr.spandrel.install(arch_args=json.loads(ARCH_ARGS.read_text()) if ARCH_ARGS.exists() else None)

NODE_CLASS_MAPPINGS = {'SpinsrUpscaleImage': UpscaleImage}
NODE_DISPLAY_NAME_MAPPINGS = {'SpinsrUpscaleImage': 'Upscale Image (spinsr)'}
__all__ = ['NODE_CLASS_MAPPINGS', 'NODE_DISPLAY_NAME_MAPPINGS']
