"""What a person asks of a pipeline, checked before any heavy work."""

import difflib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from PIL.Image import Image

from ..errors import InvalidRequest
from ..manifest import Manifest
from . import values
from .guidance import Guidance
from .parameters import described
from .pictures import Source, expand, fit, open_mask, open_picture, picture_size
from .samplers import MAX_STEPS
from .skip_layers import SkipLayers

MAX_SEED = 2**63 - 1
MAX_COUNT = 1000
MAX_GUIDANCE = 1000
MAX_LAYERS = 1000
STRENGTH = 0.6
"""How much of a picture is drawn anew where nothing else is asked for and no mask says what stays."""
DIFFUSERS_NAMES = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "num_images_per_prompt": "count",
    "mask_image": "mask",
    "skip_guidance_layers": "skip_layers",
    "skip_layer_guidance_scale": "skip_layers_scale",
    "skip_layer_guidance_start": "skip_layers_start",
    "skip_layer_guidance_stop": "skip_layers_stop",
}
NOT_FIELDS = ("width", "height", "outpaint")
FURTHER_NAMES = (
    *NOT_FIELDS,
    "refiner",
    "latents",
    "output_type",
    "on_step",
    "cancel",
    "callback_on_step_end",
)
TEXTS = ("prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3", "spacing")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of a pipeline, complete: nothing left to defaults.

    prompt_2, prompt_3, negative_prompt_2, negative_prompt_3: what the second and third text encoder read
        instead of the first's text. clip_skip: last layers of the CLIP encoders to leave out.
    size: width and height in pixels. seed: of the first picture; each further one counts up by one.
    spacing, shift, eta: see `Sampler`; None leaves them to the model. guidance_rescale, guidance_interval
        (sigmas), skip_layers...: see `Guidance`.
    image: RGB of that size, to start from. mask: L of that size, white where it is repainted. strength: how
        much of the way from noise is gone again; 1 ignores the picture but for what a mask keeps, 0 keeps it.
    switch_at: share of the way after which a refiner takes over, where there is one.
    """

    prompt: str
    prompt_2: str | None = None
    prompt_3: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    negative_prompt_3: str | None = None
    clip_skip: int = 0
    steps: int
    guidance: float
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    skip_layers: tuple[int, ...] = ()
    skip_layers_scale: float = 2.8
    skip_layers_start: float = 0.01
    skip_layers_stop: float = 0.2
    size: tuple[int, int]
    seed: int
    count: int = 1
    sampler: str
    spacing: str | None = None
    shift: float | None = None
    eta: float | None = None
    image: Image | None = None
    mask: Image | None = None
    strength: float = 1.0
    switch_at: float = 0.8

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part (Ho and Salimans 2022); at 1 it would cancel out."""
        return self.guidance > 1

    @property
    def seeds(self) -> range:
        """The seed of each picture."""
        return range(self.seed, self.seed + self.count)

    @property
    def how_guided(self) -> Guidance:
        """Guidance as the denoiser's loop takes it."""
        skip = None
        if self.skip_layers:
            how = (self.skip_layers_scale, self.skip_layers_start, self.skip_layers_stop)
            skip = SkipLayers(self.skip_layers, *how)
        return Guidance(self.guidance, self.guidance_rescale, self.guidance_interval, skip)

    @property
    def prompts(self) -> list[dict[str, str]]:
        """What each text encoder reads: of the prompt, then of the negative prompt where it takes part."""
        positive = _for_encoders(self.prompt, self.prompt_2, self.prompt_3)
        negative = (self.negative_prompt or "", self.negative_prompt_2, self.negative_prompt_3)
        return [positive, _for_encoders(*negative)] if self.guided else [positive]

    @property
    def without_negative(self) -> bool:
        """Whether no negative prompt was given at all, which differs from an empty one in SDXL."""
        return self.negative_prompt is None and not (self.negative_prompt_2 or self.negative_prompt_3)

    def parameters(self, index: int, model: str, refiner: str | None = None) -> str:
        """The `parameters` text of picture `index`, as other tools read it from a PNG; models by name."""
        return described(self, index, model, refiner)


def build_request(manifest: Manifest, prompt: str, given: Mapping[str, Any]) -> Request:
    """Fill in the model's defaults where `given` has None, accept diffusers' names, and check every value.

    image, mask: files, PIL images or arrays; fitted to the size, which is the picture's own where it is not
    given (see `picture_size`). outpaint: borders to add to the image, (left, top, right, bottom) pixels.
    Raises InvalidRequest naming the value and the remedy.
    """
    chosen = _own_names(given)
    interval = chosen.pop("guidance_interval", None)
    drawn = _drawn(manifest, chosen)
    texts: dict[str, Any] = {name: values.text(name, chosen.pop(name)) for name in TEXTS if name in chosen}
    defaults = {
        "steps": manifest.sampling.steps,
        "guidance": manifest.sampling.guidance,
        "sampler": manifest.sampling.sampler,
        "seed": secrets.randbelow(2**32),
    }
    checked: dict[str, Any] = {
        name: _CHECKS[name](name, value) for name, value in (defaults | chosen).items()
    }
    request = Request(
        prompt=values.text("prompt", prompt),
        guidance_interval=_interval(interval),
        **texts,
        **drawn,
        **checked,
    )
    values.whole("seed", request.seeds[-1], 0, MAX_SEED)
    return request


def _drawn(manifest: Manifest, chosen: dict[str, Any]) -> dict[str, Any]:
    """Size, picture, mask and strength, taken out of `chosen`."""
    space = manifest.latents
    names = ("image", "mask", "outpaint", "size", "strength")
    image, mask, borders, size, strength = (chosen.pop(name, None) for name in names)
    if image is None:
        _needs_no_picture(manifest, {"mask": mask, "outpaint": borders, "strength": strength})
        return {"size": values.size(space.default_size if size is None else size, space)}
    if "vae_encoder" not in manifest.components:
        raise InvalidRequest(f"image: {manifest.name} has no VAE encoder; convert its checkpoint again")
    picture = open_picture(image)
    if borders is not None:
        if mask is not None:
            raise InvalidRequest("mask and outpaint: give one of them")
        picture, mask = expand(picture, *_borders(borders), space.size_multiple)
    if size is None:
        size = picture_size(picture.size, space, values.most_pixels(space))
    size = values.size(size, space)
    if strength is None:
        strength = STRENGTH if mask is None else 1.0
    return {
        "size": size,
        "image": fit(picture, size),
        "mask": None if mask is None else fit(open_mask(mask), size),
        "strength": values.number("strength", strength, 0, 1),
    }


def _needs_no_picture(manifest: Manifest, others: Mapping[str, Source | float | None]) -> None:
    if manifest.conditioning.aesthetic_score:
        raise InvalidRequest(
            f"{manifest.name} is a refiner: give it a picture to work on (image), or give it to a base model "
            "as its refiner"
        )
    for name, value in others.items():
        if value is not None:
            raise InvalidRequest(f"{name}: there is no image that it could be for; give one")


def _borders(given: Any) -> tuple[int, int, int, int]:
    borders = values.numbers("outpaint", given)
    if len(borders) != 4:
        raise InvalidRequest(f"outpaint {given!r}: must be four numbers of pixels: left, top, right, bottom")
    left, top, right, bottom = (values.whole("outpaint", border, 0, 8192) for border in borders)
    return left, top, right, bottom


def _interval(given: Any) -> tuple[float, float] | None:
    if given is None:
        return None
    ends = values.numbers("guidance_interval", given)
    low, high = (
        (values.number("guidance_interval", end, 0, 1e6) for end in ends) if len(ends) == 2 else (1, 0)
    )
    if low > high:
        raise InvalidRequest(f"guidance_interval {given!r}: must be two sigmas, the lower one first")
    return low, high


def _layers(name: str, given: Any) -> tuple[int, ...]:
    return tuple(values.whole(name, layer, 0, MAX_LAYERS) for layer in values.numbers(name, given))


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "steps": lambda name, value: values.whole(name, value, 1, MAX_STEPS),
    "guidance": lambda name, value: values.number(name, value, -MAX_GUIDANCE, MAX_GUIDANCE),
    "guidance_rescale": lambda name, value: values.number(name, value, 0, 1),
    "skip_layers": _layers,
    "skip_layers_scale": lambda name, value: values.number(name, value, -MAX_GUIDANCE, MAX_GUIDANCE),
    "skip_layers_start": lambda name, value: values.number(name, value, 0, 1),
    "skip_layers_stop": lambda name, value: values.number(name, value, 0, 1),
    "clip_skip": lambda name, value: values.whole(name, value, 0, MAX_LAYERS),
    "seed": lambda name, value: values.whole(name, value, 0, MAX_SEED),
    "count": lambda name, value: values.whole(name, value, 1, MAX_COUNT),
    "sampler": values.text,
    "shift": lambda name, value: values.number(name, value, 1e-3, 1e3),
    "eta": lambda name, value: values.number(name, value, 0, 1),
    "switch_at": lambda name, value: values.number(name, value, 0, 1),
}


def _own_names(given: Mapping[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    names = [field.name for field in fields(Request)]
    for name, value in given.items():
        own = DIFFUSERS_NAMES.get(name, name)
        if own not in (*names, *NOT_FIELDS):
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


def _for_encoders(first: str, second: str | None, third: str | None) -> dict[str, str]:
    return {
        "text_encoder": first,
        "text_encoder_2": first if second is None else second,
        "text_encoder_3": first if third is None else third,
    }
