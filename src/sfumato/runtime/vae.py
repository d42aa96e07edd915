"""Latents to pixels, and back."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import SfumatoError
from ..families import Array
from ..manifest import LatentSpace
from .memory import Kept
from .networks import Network
from .noise import NoiseSource
from .tiles import decode_tiles, encode_tiles, tile_shape

TILE: dict[Kept, int] = {"low": 96, "high": 128}
"""Side in latents of the largest square that is done whole; larger ones are done in tiles of that side.

Decoding takes 1.5 kB a pixel in bf16 and 3 kB in f32 (SD's VAE): 0.9 or 1.8 GB for 96 latents of 8 pixels, no
more than SD 1.x's denoiser, and 1.6 or 3.2 GB for 128. Group normalisation sees one tile at a time, so larger
tiles differ less from the whole: at 1024x1024 four tiles of 96 are 3 to 9 dB closer to it than nine of 64, at
the same cost (mini's VAE).
"""


class Decoder:
    """The VAE's decoder with its latent scaling; decodes in tiles of `tile` latents where there are more."""

    def __init__(self, network: Network, space: LatentSpace, tile: int) -> None:
        self._network = network
        self._space = space
        self._tile = tile

    def load(self, latents: tuple[int, ...]) -> None:
        """Compile the network for latents of this shape, [1, channels, height, width], or for their tiles."""
        shape = (*latents[:2], *self._tile_shape(latents))
        self._network.load({"latent_sample": shape}, self._outputs(shape))

    def release(self) -> None:
        """Let go of the compiled network."""
        self._network.release()

    def __call__(self, latents: Array) -> Array:
        """Decode model latents [1, channels, height, width] to pixels in 0..1, [height, width, 3].

        Raises SfumatoError where the result is not finite, as after an overflow in 16-bit arithmetic.
        """
        unscaled = latents / np.float32(self._space.scale) + np.float32(self._space.shift)
        tile = self._tile_shape(latents.shape)
        sample: Array = decode_tiles(self._decode, unscaled, tile, self._space.factor)[0]
        check_finite("decoded picture", sample)
        return (sample / 2 + np.float32(0.5)).clip(0, 1).transpose(1, 2, 0)

    def _decode(self, latents: Array) -> Array:
        sample: Array = self._network({"latent_sample": latents}, self._outputs(latents.shape))["sample"]
        return sample

    def _tile_shape(self, latents: tuple[int, ...]) -> tuple[int, int]:
        return tile_shape(latents[-2], latents[-1], self._tile)

    def _outputs(self, latents: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        height, width = (side * self._space.factor for side in latents[-2:])
        return {"sample": (1, 3, height, width)}


@dataclass(frozen=True, eq=False)
class Posterior:
    """What an encoder says of a picture: mean and deviation of latents, [1, channels, height, width]."""

    mean: Array
    deviation: Array

    def sample(self, noise: NoiseSource) -> Array:
        """Draw latents; takes one picture's values from the stream, as diffusers' pipelines do."""
        return self.mean + self.deviation * noise.randn(self.mean.shape)


class Encoder:
    """The VAE's encoder with its latent scaling; encodes in tiles of `tile` latents where there are more."""

    def __init__(self, network: Network, space: LatentSpace, tile: int) -> None:
        self._network = network
        self._space = space
        self._tile = tile

    def load(self, latents: tuple[int, ...]) -> None:
        """Compile the network for pictures with latents of this shape, [1, channels, height, width]."""
        height, width = tile_shape(latents[-2], latents[-1], self._tile)
        factor = self._space.factor
        self._network.load({"sample": (1, 3, height * factor, width * factor)}, self._outputs(height, width))

    def release(self) -> None:
        """Let go of the compiled network."""
        self._network.release()

    def __call__(self, pixels: Array) -> Posterior:
        """Encode pixels in -1..1, [1, 3, height, width] float32 (Kingma and Welling 2014).

        Raises SfumatoError where the result is not finite, as after an overflow in 16-bit arithmetic.
        """
        factor = self._space.factor
        tile = tile_shape(pixels.shape[-2] // factor, pixels.shape[-1] // factor, self._tile)
        moments = encode_tiles(self._encode, pixels, tile, factor)
        check_finite("encoded picture", moments)
        mean, log_variance = np.split(moments, 2, axis=1)
        scale, shift = np.float32(self._space.scale), np.float32(self._space.shift)
        return Posterior((mean - shift) * scale, np.exp(log_variance.clip(-30, 20) / 2) * scale)

    def _encode(self, pixels: Array) -> Array:
        height, width = (side // self._space.factor for side in pixels.shape[-2:])
        moments: Array = self._network({"sample": pixels}, self._outputs(height, width))["latent_parameters"]
        return moments

    def _outputs(self, height: int, width: int) -> dict[str, tuple[int, ...]]:
        return {"latent_parameters": (1, 2 * self._space.channels, height, width)}


def check_finite(what: str, values: Array) -> None:
    """Raise SfumatoError where values overflowed: what they would make is a black picture."""
    if not np.isfinite(values).all():
        raise SfumatoError(f"the {what} is not finite numbers; try again with precision 'f32'")


def to_image(pixels: Array) -> Image.Image:
    """Pixels in 0..1, [height, width, 3], as an 8-bit RGB picture."""
    rounded: NDArray[np.uint8] = (pixels * 255).round().astype(np.uint8)
    return Image.fromarray(rounded)
