"""What latents look like, at their own size and without the VAE."""

import numpy as np
from PIL import Image

from ..families import Array
from ..manifest import LatentSpace
from .vae import to_image


def preview(latents: Array, space: LatentSpace) -> Image.Image | None:
    """The picture that model latents [1, channels, height, width] stand for, one pixel for each latent.

    A linear map, which the model folder brings along; None where it has none. It takes a millisecond for a
    full picture of 1024x1024 pixels.
    """
    if space.preview is None:
        return None
    *weights, constant = np.asarray(space.preview, np.float32)
    finite = np.nan_to_num(latents[0]).clip(-1e6, 1e6)  # an overflow is for the pipeline to report
    colours = np.tensordot(finite, np.stack(weights), (0, 0)) + constant
    return to_image(colours.clip(0, 1))
