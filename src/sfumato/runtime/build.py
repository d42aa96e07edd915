"""From what a person gives to a complete request, checked before any heavy work."""

import difflib
import logging
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from ..errors import InvalidRequest
from ..manifest import MOST_GUIDANCE_EVERY, Manifest
from . import values
from .pictures import expand, fit, fit_mask, open_mask, open_picture, picture_size
from .request import Request
from .reuse import check_reuse
from .samplers import MAX_STEPS
from .schedules import LEAST_SHIFT, MOST_SHIFT
from .skip_layers import MOST_LAYERS

MAX_COUNT = 1000
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
NOT_REQUESTED = ("refiner", "latents", "output_type", "on_step", "cancel", "callback_on_step_end")
"""What only a call takes."""
OF_MODEL = ("guidance_embedded",)
"""What only the model says."""
TEXTS = ("prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3", "spacing")
_log = logging.getLogger(__name__)


def build_request(manifest: Manifest, prompt: str, given: Mapping[str, Any]) -> Request:
    """Fill in the model's defaults where `given` has None, accept diffusers' names, and check every value.

    image, mask: files, PIL images or arrays; fitted to the size, which is the picture's own where it is not
    given (see `picture_size`). outpaint: borders to add to the image, (left, top, right, bottom) pixels.
    Raises InvalidRequest naming the value and the remedy.
    """
    chosen = _own_names(given)
    drawn = _drawn(manifest, chosen)
    texts: dict[str, Any] = {name: values.text(name, chosen.pop(name)) for name in TEXTS if name in chosen}
    defaults = {
        "steps": manifest.sampling.steps,
        "guidance": manifest.sampling.guidance,
        "sampler": manifest.sampling.sampler,
        "seed": secrets.randbelow(2**32),
        "reuse": manifest.sampling.reuse,
        "guidance_every": manifest.sampling.guidance_every,
    }
    checked: dict[str, Any] = {
        name: _CHECKS[name](name, value) for name, value in (defaults | chosen).items()
    }
    _check_encoders(manifest, texts)
    embedded = manifest.conditioning.embeds_guidance
    if embedded and any(texts.get(name) for name in TEXTS if name.startswith("negative")):
        _log.warning("negative prompt: has no effect, as %s takes the guidance as an input", manifest.name)
    request = Request(
        prompt=values.text("prompt", prompt), **texts, **drawn, **checked, guidance_embedded=embedded
    )
    values.whole("seed", request.seeds[-1], 0, values.MAX_SEED)
    _ = request.how_guided
    return request


def _check_encoders(manifest: Manifest, texts: Mapping[str, str]) -> None:
    for name in texts:
        number = name[-1]
        if number in "23" and f"text_encoder_{number}" not in manifest.components:
            raise InvalidRequest(f"{name}: {manifest.name} has no text_encoder_{number}; leave it out")


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
        if size is not None:
            raise InvalidRequest("size and outpaint: the picture and its borders make the size; leave it out")
        picture, mask = expand(picture, *_borders(borders), space.size_multiple)
    if size is None:
        most = values.MAX_ENLARGEMENT * math.prod(space.default_size)
        size = picture_size(picture.size, space, values.most_pixels(space) if borders else most)
    size = values.size(size, space)
    if strength is None:
        strength = STRENGTH if mask is None else 1.0
    return {
        "size": size,
        "image": fit(picture, size),
        "mask": None if mask is None else fit_mask(open_mask(mask), picture.size, size),
        "strength": values.number("strength", strength, 0, 1),
    }


def _needs_no_picture(manifest: Manifest, others: Mapping[str, Any]) -> None:
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


def _interval(name: str, given: Any) -> tuple[float, ...]:
    ends = tuple(values.number(name, end, 0, 1e6) for end in values.numbers(name, given))
    if len(ends) != 2:
        raise InvalidRequest(f"{name} {given!r}: must be two sigmas, the lower one first")
    return ends


def _layers(name: str, given: Any) -> tuple[int, ...]:
    return tuple(values.whole(name, layer, 0, MOST_LAYERS) for layer in values.numbers(name, given))


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "steps": lambda name, value: values.whole(name, value, 1, MAX_STEPS),
    "guidance": values.guidance,
    "guidance_rescale": lambda name, value: values.number(name, value, 0, 1),
    "guidance_interval": _interval,
    "guidance_every": lambda name, value: values.whole(name, value, 1, MOST_GUIDANCE_EVERY),
    "skip_layers": _layers,
    "skip_layers_scale": lambda name, value: values.number(
        name, value, -values.MAX_GUIDANCE, values.MAX_GUIDANCE
    ),
    "skip_layers_start": lambda name, value: values.number(name, value, 0, 1),
    "skip_layers_stop": lambda name, value: values.number(name, value, 0, 1),
    "clip_skip": lambda name, value: values.whole(name, value, 0, MOST_LAYERS),
    "seed": lambda name, value: values.whole(name, value, 0, values.MAX_SEED),
    "count": lambda name, value: values.whole(name, value, 1, MAX_COUNT),
    "sampler": values.text,
    "shift": lambda name, value: values.number(name, value, LEAST_SHIFT, MOST_SHIFT),
    "eta": lambda name, value: values.number(name, value, 0, 1),
    "switch_at": lambda name, value: values.number(name, value, 0, 1),
    "reuse": check_reuse,
}


def _own_names(given: Mapping[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    names = [field.name for field in fields(Request) if field.name not in OF_MODEL]
    for name, value in given.items():
        own = DIFFUSERS_NAMES.get(name, name)
        if own not in (*names, *NOT_FIELDS):
            if name in NOT_REQUESTED:
                raise InvalidRequest(f"{name}: cannot be given here; leave it out")
            known = (*names, *DIFFUSERS_NAMES, *NOT_FIELDS, *NOT_REQUESTED)
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
