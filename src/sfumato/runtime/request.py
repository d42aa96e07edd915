"""What a person asks of a pipeline, checked before any heavy work."""

import difflib
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .. import __version__
from ..errors import InvalidRequest
from ..manifest import LatentSpace, Manifest
from .png import parameters_text
from .samplers import MAX_STEPS

MAX_SEED = 2**63 - 1
MAX_COUNT = 1000
MAX_GUIDANCE = 1000
MAX_PIXELS = 1024 * 1024
MAX_ENLARGEMENT = 4
"""Most pixels of a picture: MAX_PIXELS, or so many times the model's own."""
DIFFUSERS_NAMES = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "num_images_per_prompt": "count",
}
FURTHER_NAMES = ("width", "height", "latents", "output_type", "on_step", "cancel", "callback_on_step_end")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of a pipeline, complete: nothing left to defaults.

    size: width and height in pixels. seed: of the first picture; each further one counts up by one.
    """

    prompt: str
    negative_prompt: str | None = None
    steps: int
    guidance: float
    size: tuple[int, int]
    seed: int
    count: int = 1
    sampler: str

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part (Ho and Salimans 2022); at 1 it would cancel out."""
        return self.guidance > 1

    @property
    def seeds(self) -> range:
        """The seed of each picture."""
        return range(self.seed, self.seed + self.count)

    def parameters(self, index: int, model: str) -> str:
        """The `parameters` text of picture `index`, as other tools read it from a PNG."""
        return parameters_text(
            self.prompt,
            self.negative_prompt if self.guided else None,
            steps=self.steps,
            sampler=self.sampler,
            guidance=self.guidance,
            seed=self.seeds[index],
            size=self.size,
            model=model,
            version=__version__,
        )


def build_request(manifest: Manifest, prompt: str, given: Mapping[str, Any]) -> Request:
    """Fill in the model's defaults where `given` has None, accept diffusers' names, and check every value.

    Raises InvalidRequest naming the value and the remedy.
    """
    chosen = _own_names(given)
    negative = chosen.get("negative_prompt")
    request = Request(
        prompt=_text("prompt", prompt),
        negative_prompt=None if negative is None else _text("negative_prompt", negative),
        steps=_whole("steps", chosen.get("steps", manifest.sampling.steps), 1, MAX_STEPS),
        guidance=_number("guidance", chosen.get("guidance", manifest.sampling.guidance), MAX_GUIDANCE),
        size=_size(chosen.get("size", manifest.latents.default_size), manifest.latents),
        seed=_whole("seed", chosen.get("seed", secrets.randbelow(2**32)), 0, MAX_SEED),
        count=_whole("count", chosen.get("count", 1), 1, MAX_COUNT),
        sampler=_text("sampler", chosen.get("sampler", manifest.sampling.sampler)),
    )
    _whole("seed", request.seeds[-1], 0, MAX_SEED)
    return request


def _own_names(given: Mapping[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    names = [field.name for field in fields(Request)]
    for name, value in given.items():
        own = DIFFUSERS_NAMES.get(name, name)
        if own not in (*names, "width", "height"):
            known = (*names, *DIFFUSERS_NAMES, *FURTHER_NAMES)
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
            raise InvalidRequest(f"unknown parameter {name!r}: {hint}")
        if value is None:
            continue
        if own in chosen:
            raise InvalidRequest(f"{own} and {name} mean the same: give one of them")
        chosen[own] = value
    width, height = chosen.pop("width", None), chosen.pop("height", None)
    if width is not None or height is not None:
        if width is None or height is None or "size" in chosen:
            raise InvalidRequest("give either size, or both width and height")
        chosen["size"] = (width, height)
    return chosen


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} {value!r}: must be one text")
    stray = next((character for character in value if "\ud800" <= character <= "\udfff"), None)
    if stray is not None:
        raise InvalidRequest(f"{name}: {stray!r} is half a character; give Unicode text")
    return value


def _size(value: Any, space: LatentSpace) -> tuple[int, int]:
    try:
        width, height = (None, None) if isinstance(value, str) else value
    except (TypeError, ValueError):
        width, height = None, None
    if width is None or height is None:
        raise InvalidRequest(f"size {value!r}: must be a width and a height, such as (512, 512)")
    most = max(MAX_PIXELS, MAX_ENLARGEMENT * math.prod(space.default_size))
    width, height = _whole("width", width, 1, most), _whole("height", height, 1, most)
    multiple = space.size_multiple
    if width % multiple or height % multiple:
        nearest = (max(1, (side + multiple // 2) // multiple) * multiple for side in (width, height))
        raise InvalidRequest(
            f"size {width}x{height}: both sides must be multiples of {multiple}; "
            f"nearest is {'x'.join(map(str, nearest))}"
        )
    if width * height > most:
        own = "x".join(map(str, space.default_size))
        raise InvalidRequest(
            f"size {width}x{height}: too many pixels; a model made for {own} takes {most} at most"
        )
    return width, height


def _whole(name: str, value: Any, least: int, most: int) -> int:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if whole and least <= value <= most:
        return int(value)
    raise InvalidRequest(f"{name} {value!r}: must be a whole number from {least} to {most}")


def _number(name: str, value: Any, most: float) -> float:
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if real and -most <= value <= most:
        return float(value)
    raise InvalidRequest(f"{name} {value!r}: must be a finite number from {-most} to {most}")
