"""What callers see of a running generation: steps, times, and the way to stop it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image

from ..errors import Cancelled
from ..families import Array
from ..manifest import LatentSpace
from .denoiser import OnStep
from .preview import preview

Cancel = Callable[[], bool]


@dataclass(frozen=True, eq=False)
class Step:
    """Call `index` of the denoiser, of `steps`, for picture `image`, of `images`, is done; both count from 0.

    timestep: what the denoiser was told. latents: where the sampler stands, in its own scale.
    estimate: the clean latents it now expects to arrive at, in the model's scale.
    space: the latents' model. Arrays are [1, channels, height / 8, width / 8] float32.
    """

    index: int
    steps: int
    timestep: float
    image: int
    images: int
    latents: Array
    estimate: Array
    space: LatentSpace

    def preview(self) -> Image.Image | None:
        """What the estimate looks like, in RGB, one pixel for each latent (an eighth of the picture's sides).

        Costs nothing unless it is called. None where the model folder has no map for it.
        """
        return preview(self.estimate, self.space)


OnStepDone = Callable[[Step], None]


def watch(
    image: int,
    images: int,
    calls: int,
    timesteps: Array,
    on_step: OnStepDone | None,
    cancel: Cancel | None,
    space: LatentSpace,
) -> OnStep:
    """A sampler's callback that reports each step and raises Cancelled between steps where asked to.

    calls: how often the sampler calls the denoiser; where that is more than timesteps, it repeats early ones.
    """
    extra = calls - len(timesteps)

    def after(index: int, x: Array, x0: Array) -> None:
        if on_step is not None:
            timestep = float(timesteps[index - extra if index > extra else index])
            on_step(Step(index, calls, timestep, image, images, x, x0, space))
        stop_if(cancel)

    return after


def stop_if(cancel: Cancel | None) -> None:
    """Raise Cancelled if the caller wants no more."""
    if cancel is not None and cancel():
        raise Cancelled("generation cancelled")


class Clock:
    """Wall time by stage, in seconds: `with clock("encode"): ...`; "total" runs from the start."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._stages[stage] = self._stages.get(stage, 0.0) + time.perf_counter() - begin

    @property
    def seconds(self) -> dict[str, float]:
        """The stages so far, and the total."""
        return {**self._stages, "total": time.perf_counter() - self._begin}
