"""Where pictures are on their way: pure noise, a picture with noise, or what another model hands over."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidRequest
from ..families import Array
from .denoiser import Known
from .noise import Generator
from .pictures import latent_mask, repainted, to_array
from .request import Request
from .schedules import Schedule, same_latents
from .stages import Stage
from .vae import Encoder, Posterior

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Point:
    """One picture between two steps.

    x: its latents at `sigma`, [1, channels, height, width], as samplers have them. noise: where its noise
    comes from. known: what must come out where nothing is repainted. extra: further channels of the
    denoiser's input, for inpainting models.
    """

    x: Array
    sigma: float
    noise: Generator
    known: Known | None = None
    extra: Array | None = None

    def at(self, schedule: Schedule) -> Array:
        """Its x for another schedule, which begins at the same noise level or one close by."""
        sigma = float(schedule.sigmas[0])
        return self.x if schedule.space == "flow" else same_latents(self.x, self.sigma, sigma)

    def finished(self, schedule: Schedule) -> Array:
        """Latents for the decoder, where x is at the schedule's end."""
        latents = schedule.finish(self.x)
        return latents if self.known is None else self.known.blend(latents)


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """What a request's picture and mask are in latents.

    posterior: of the picture, None where nothing of it is to stay. mask: [1, 1, height, width], 1 where
    repainted. masked: of the picture without what is repainted, for models that look at it themselves. known:
    whether the latents that are not repainted are given to the others.
    """

    posterior: Posterior | None = None
    mask: Array | None = None
    masked: Posterior | None = None
    known: bool = False


def encode_image(encoder: Encoder, request: Request, factor: int, inpainting: Sequence[bool]) -> EncodedImage:
    """Encode what a request says to begin from.

    factor: pixels for each latent. inpainting: whether the model, and its refiner, take the masked picture
    as further channels; without a picture such a model gets a grey one.
    """
    width, height = request.size
    mask = None if request.mask is None else latent_mask(request.mask, factor)
    known = mask is not None and not all(inpainting)
    pixels = np.zeros((1, 3, height, width), np.float32) if request.image is None else to_array(request.image)
    kept = request.image is not None and (request.strength < 1 or known)
    posterior = encoder(pixels) if kept else None
    if not inpainting[0]:
        return EncodedImage(posterior, mask, known=known)
    white = np.ones((height, width), bool) if request.mask is None else repainted(request.mask)
    if mask is None:
        mask = np.ones((1, 1, height // factor, width // factor), np.float32)
    return EncodedImage(posterior, mask, encoder(np.where(white, np.float32(0), pixels)), known)


def begin(
    image: EncodedImage, stages: Sequence[Stage], request: Request, shape: tuple[int, ...], given: Any
) -> Iterator[Point]:
    """The first point of each picture: `shape` is that of one's latents; given: noise, one row a picture.

    Values are drawn from the seed's stream as in diffusers' pipelines: the picture's latents, the noise, the
    masked picture's latents. Raises InvalidRequest for noise of another shape.
    """
    rows = _checked_noise(given, (request.count, *shape[1:]))
    schedule = stages[0].schedule
    untouched = not any(stage.calls for stage in stages)
    if untouched and request.strength > 0:
        log.warning("strength %g of %d steps leaves none: more of either", request.strength, request.steps)

    def first(index: int, seed: int) -> Point:
        noise = Generator(seed)
        latents = None if image.posterior is None else image.posterior.sample(noise)
        unit = noise.randn(shape) if rows is None else rows[index : index + 1]
        extra = None
        if image.masked is not None and image.mask is not None:
            extra = np.concatenate([image.mask, image.masked.sample(noise)], axis=1)
        known = None
        if image.known and latents is not None and image.mask is not None:
            known = Known(latents, image.mask)
        sigma = float(schedule.sigmas[0])
        if latents is not None and untouched:
            return Point(_clean(latents, schedule), sigma, noise, known, extra)
        return Point(_noisy(latents, unit, schedule, request.strength, known), sigma, noise, known, extra)

    return (first(index, seed) for index, seed in enumerate(request.seeds))


def _clean(latents: Array, schedule: Schedule) -> Array:
    """The x that `Schedule.finish` makes the latents of."""
    return latents if schedule.space == "flow" else same_latents(latents, 0.0, float(schedule.sigmas[0]))


def _noisy(
    latents: Array | None, unit: Array, schedule: Schedule, strength: float, known: Known | None
) -> Array:
    if latents is None:
        return schedule.begin(unit)
    noised = schedule.noised(latents, unit)
    if strength < 1 or known is None:
        return noised
    return np.where(known.mask > 0, schedule.begin(unit), noised)


def _checked_noise(latents: Any, shape: tuple[int, ...]) -> Array | None:
    if latents is None:
        return None
    try:
        noise = np.asarray(latents, np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"latents: must be an array of numbers ({error})") from error
    if noise.shape != shape or not np.isfinite(noise).all():
        raise InvalidRequest(f"latents of shape {noise.shape}: must be finite numbers of shape {shape}")
    return noise
