"""Latents to pixels."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import SfumatoError
from ..families import Array
from ..manifest import LatentSpace
from .networks import Network


class Decoder:
    """The VAE's decoder with its latent scaling."""

    def __init__(self, network: Network, space: LatentSpace) -> None:
        self._network = network
        self._space = space

    def load(self, latents: tuple[int, ...]) -> None:
        """Compile the network for latents of this shape, [1, channels, height, width]."""
        self._network.load({"latent_sample": latents}, self._outputs(latents))

    def __call__(self, latents: Array) -> Array:
        """Decode model latents [1, channels, height, width] to pixels in 0..1, [height, width, 3].

        Raises SfumatoError where the result is not finite, as after an overflow in 16-bit arithmetic.
        """
        unscaled = latents / np.float32(self._space.scale) + np.float32(self._space.shift)
        outputs = self._network({"latent_sample": unscaled}, self._outputs(latents.shape))
        sample: Array = outputs["sample"][0]
        check_finite("decoded picture", sample)
        return (sample / 2 + np.float32(0.5)).clip(0, 1).transpose(1, 2, 0)

    def _outputs(self, latents: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        height, width = (side * self._space.factor for side in latents[-2:])
        return {"sample": (1, 3, height, width)}


def check_finite(what: str, values: Array) -> None:
    """Raise SfumatoError where values overflowed: what they would make is a black picture."""
    if not np.isfinite(values).all():
        raise SfumatoError(f"the {what} is not finite numbers; try again with precision 'f32'")


def to_image(pixels: Array) -> Image.Image:
    """Pixels in 0..1, [height, width, 3], as an 8-bit RGB picture."""
    rounded: NDArray[np.uint8] = (pixels * 255).round().astype(np.uint8)
    return Image.fromarray(rounded)
