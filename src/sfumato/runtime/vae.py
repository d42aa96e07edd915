"""Latents to pixels."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..artifact import LatentSpace
from ..errors import SfumatoError
from ..families import Array
from .devices import Network


class Decoder:
    """The VAE's decoder with its latent scaling."""

    def __init__(self, network: Network, space: LatentSpace) -> None:
        self._network = network
        self._space = space

    def load(self, latents: tuple[int, ...]) -> None:
        """Compile the network for latents of this shape, [1, channels, height, width]."""
        self._network.load({"latent_sample": latents})

    def __call__(self, latents: Array) -> Array:
        """Decode model latents [1, channels, height, width] to pixels in 0..1, [height, width, 3].

        Raises SfumatoError where the result is not finite, as after an overflow in 16-bit arithmetic.
        """
        unscaled = latents / np.float32(self._space.scale) + np.float32(self._space.shift)
        sample: Array = self._network({"latent_sample": unscaled})[0][0]
        if not np.isfinite(sample).all():
            raise SfumatoError("the decoded picture is not finite numbers; try again with precision 'f32'")
        return (sample / 2 + np.float32(0.5)).clip(0, 1).transpose(1, 2, 0)


def to_image(pixels: Array) -> Image.Image:
    """Pixels in 0..1, [height, width, 3], as an 8-bit RGB picture."""
    rounded: NDArray[np.uint8] = (pixels * 255).round().astype(np.uint8)
    return Image.fromarray(rounded)
