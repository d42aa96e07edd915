"""What a person asks of a pipeline, checked before any heavy work."""

import difflib
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .. import __version__
from ..artifact import Manifest
from ..errors import InvalidRequest
from .png import parameters_text

MAX_SEED = 2**63 - 1
DIFFUSERS_NAMES = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "num_images_per_prompt": "count",
}


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
    for name, text in (("prompt", prompt), ("negative_prompt", chosen.get("negative_prompt", ""))):
        if not isinstance(text, str):
            raise InvalidRequest(f"{name} {text!r}: must be one text")
    request = Request(
        prompt=prompt,
        negative_prompt=chosen.get("negative_prompt"),
        steps=_whole("steps", chosen.get("steps", manifest.sampling.steps), least=1),
        guidance=_finite("guidance", chosen.get("guidance", manifest.sampling.guidance)),
        size=_size(chosen.get("size", manifest.latents.default_size), manifest.latents.size_multiple),
        seed=_whole("seed", chosen.get("seed", secrets.randbelow(2**32)), least=0),
        count=_whole("count", chosen.get("count", 1), least=1),
        sampler=chosen.get("sampler", manifest.sampling.sampler),
    )
    if request.seeds[-1] > MAX_SEED:
        raise InvalidRequest(f"seed {request.seeds[-1]}: at most 2**63 - 1")
    return request


def _own_names(given: Mapping[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    known = [field.name for field in fields(Request)]
    for name, value in given.items():
        own = DIFFUSERS_NAMES.get(name, name)
        if own not in (*known, "width", "height"):
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


def _size(value: Any, multiple: int) -> tuple[int, int]:
    try:
        width, height = value
    except (TypeError, ValueError):
        raise InvalidRequest(f"size {value!r}: must be a width and a height, such as (512, 512)") from None
    width, height = _whole("width", width, least=1), _whole("height", height, least=1)
    if width % multiple or height % multiple:
        nearest = (max(1, (side + multiple // 2) // multiple) * multiple for side in (width, height))
        raise InvalidRequest(
            f"size {width}x{height}: both sides must be multiples of {multiple}; "
            f"nearest is {'x'.join(map(str, nearest))}"
        )
    return width, height


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= least:
        return int(value)
    raise InvalidRequest(f"{name} {value}: must be a whole number, {least} or more")


def _finite(name: str, value: Any) -> float:
    if isinstance(value, int | float | np.number) and math.isfinite(value):
        return float(value)
    raise InvalidRequest(f"{name} {value}: must be a finite number")
