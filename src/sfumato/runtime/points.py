"""Where pictures are on their way: pure noise, a picture with noise, or what another model hands over."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..families import Array
from .denoiser import Known
from .noise import Generator
from .pictures import latent_mask, to_array
from .request import Request
from .schedules import Schedule, same_latents
from .vae import Encoder, Posterior


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
class Source:
    """What a picture and a mask say about where to begin.

    posterior: of the picture, None where nothing of it is to stay. mask: [1, 1, height, width], 1 where
    repainted. masked: of the picture without what is repainted, for models that look at it themselves.
    """

    posterior: Posterior | None = None
    mask: Array | None = None
    masked: Posterior | None = None


def encode_source(encoder: Encoder, request: Request, inpainting: bool, factor: int) -> Source:
    """Encode what a request says to begin from.

    inpainting: the model takes the masked picture as further channels; without one it gets a grey one.
    """
    width, height = request.size
    mask = None if request.mask is None else latent_mask(request.mask, factor)
    pixels = np.zeros((1, 3, height, width), np.float32) if request.image is None else to_array(request.image)
    kept = request.image is not None and (request.strength < 1 or not (inpainting or mask is None))
    posterior = encoder(pixels) if kept else None
    if not inpainting:
        return Source(posterior, mask)
    if mask is None or request.mask is None:
        repainted = np.ones((height, width), bool)
        mask = np.ones((1, 1, height // factor, width // factor), np.float32)
    else:
        repainted = np.asarray(request.mask) >= 128
    return Source(posterior, mask, encoder(np.where(repainted, np.float32(0), pixels)))


def begin(
    source: Source,
    schedule: Schedule,
    request: Request,
    shape: tuple[int, ...],
    given: Array | None,
) -> Iterator[Point]:
    """The first point of each picture: `shape` is that of one's latents; given: noise, one row a picture.

    Values are drawn from the seed's stream as in diffusers' pipelines: the picture's latents, the noise, the
    masked picture's latents.
    """
    sigma = float(schedule.sigmas[0])
    for index, seed in enumerate(request.seeds):
        noise = Generator(seed)
        latents = None if source.posterior is None else source.posterior.sample(noise)
        unit = noise.randn(shape) if given is None else given[index : index + 1]
        extra = None
        if source.masked is not None and source.mask is not None:
            extra = np.concatenate([source.mask, source.masked.sample(noise)], axis=1)
        known = None
        if latents is not None and source.mask is not None and extra is None:
            known = Known(latents, source.mask)
        yield Point(_first(latents, unit, schedule, request.strength, known), sigma, noise, known, extra)


def _first(
    latents: Array | None, unit: Array, schedule: Schedule, strength: float, known: Known | None
) -> Array:
    if latents is None:
        return schedule.begin(unit)
    if strength == 0 and schedule.space == "vp":
        return same_latents(latents, 0.0, float(schedule.sigmas[0]))
    noised = schedule.noised(latents, unit)
    if strength < 1 or known is None:
        return noised
    return np.where(known.mask > 0, schedule.begin(unit), noised)
