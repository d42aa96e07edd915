"""TAESD's decoder (`AutoencoderTiny`) in the place of a checkpoint's own: a fraction of the time and memory.

It was distilled to decode the model's scaled latents (github.com/madebyollin/taesd). The one that is exported
takes unscaled ones like every VAE decoder, so that nothing else has to know of it; the encoder stays.
"""

from pathlib import Path

from ..errors import CheckpointError
from .checkpoints import TINY_DECODER, Json, Part, read_json
from .defaults import vae_factor
from .weights import find_weights

CLASS = "AutoencoderTiny"
LEVELS = range(1, 9)


def open_tiny_decoder(folder: Path, vae: Part) -> Part:
    """The tiny autoencoder in `folder`, checked to decode the latents of `vae`; loads no weights.

    Its configuration gets the scale and shift of `vae`, which the exported decoder undoes. Raises
    CheckpointError where it is missing, unsafe, of another class, or for other latents.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no folder; a tiny decoder has config.json and diffusion_pytorch_model.safetensors"
        )
    config = read_json(folder / "config.json", folder)
    if config.get("_class_name") != CLASS:
        raise CheckpointError(
            f"{folder}: class {config.get('_class_name')!r} is no tiny decoder; expected {CLASS}"
        )
    latents, wanted = (each.get("latent_channels") for each in (config, vae.config))
    if latents != wanted:
        raise CheckpointError(
            f"{folder}: decodes latents of {latents} channels, the checkpoint's have {wanted}; take the tiny "
            "decoder of its family"
        )
    factor, own = _factor(folder, config), vae_factor(vae.config)
    if factor != own:
        raise CheckpointError(
            f"{folder}: makes {factor} pixels of a latent's side, the checkpoint's autoencoder {own}; take "
            "the tiny decoder of its family"
        )
    shift = vae.config.get("shift_factor") or 0.0
    scale = {"scaling_factor": vae.config["scaling_factor"], "shift_factor": shift}
    return Part(TINY_DECODER, CLASS, folder, config | scale, find_weights(folder, inside_root=folder))


def _factor(folder: Path, config: Json) -> int:
    """Pixels to a side of a latent."""
    widths, by = config.get("decoder_block_out_channels"), config.get("upsampling_scaling_factor", 2)
    if not isinstance(widths, list) or len(widths) not in LEVELS or by not in LEVELS:
        raise CheckpointError(
            f"{folder / 'config.json'}: decoder_block_out_channels {widths!r} and upsampling_scaling_factor "
            f"{by!r} must be a list of 1 to {LEVELS[-1]} widths and a number from 1 to {LEVELS[-1]}"
        )
    return int(by ** (len(widths) - 1))
