"""What a pipeline's call gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL.Image import Image

from ..errors import InvalidRequest
from ..families import Array
from .parameters import Models, described
from .pictures import compose
from .request import Request
from .vae import Decoder, to_image

OnImage = Callable[[int, Any, str], None]
"""Told of a picture that is done: its number from 0, the picture, and its `parameters` text."""
OutputType = Literal["pil", "np", "latent"]


@dataclass(frozen=True, eq=False)
class Result:
    """What a call made, and how.

    images: a list of PIL images; for "np" float32 pixels in 0..1, [count, height, width, 3]; for "latent"
        the denoised latents in the model's scale, [count, channels, height / 8, width / 8] float32.
    made_by: the models. seconds: wall time by stage: "load", "encode", "denoise", "decode" (but for
        "latent") and "total".
    """

    images: Any
    request: Request
    made_by: Models
    seconds: dict[str, float]

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture: given alone, it makes the same one."""
        return list(self.request.seeds)

    def parameters(self, index: int = 0) -> str:
        """The `parameters` text of one picture, as other tools read it from a PNG."""
        return described(self.request, index, self.made_by)


def finisher(output_type: str, request: Request) -> Callable[[Decoder, Array], Any]:
    """What to make of denoised latents [1, channels, height, width]; a mask keeps the rest of the picture.

    Raises InvalidRequest for an output type that is none.
    """
    image, mask = request.image, request.mask

    def picture(decode: Decoder, latents: Array) -> Image:
        generated = to_image(decode(latents))
        return generated if image is None or mask is None else compose(image, generated, mask)

    def pixels(decode: Decoder, latents: Array) -> Array:
        generated = decode(latents)
        if image is None or mask is None:
            return generated
        kept, share = (np.asarray(each, np.float32) / np.float32(255) for each in (image, mask))
        blended: Array = kept + (generated - kept) * share[..., None]
        return blended

    ways: dict[str, Callable[[Decoder, Array], Any]] = {
        "pil": picture,
        "np": pixels,
        "latent": lambda decode, latents: latents[0],
    }
    if output_type not in ways:
        raise InvalidRequest(f"output_type {output_type!r}: one of {', '.join(ways)}")
    return ways[output_type]
