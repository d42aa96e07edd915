"""What a person asks of a pipeline."""

from dataclasses import dataclass

from PIL.Image import Image

from ..manifest import Reuse
from .guidance import Guidance
from .skip_layers import SkipLayers


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of a pipeline, complete: nothing left to defaults.

    prompt_2, prompt_3, negative_prompt_2, negative_prompt_3: what the second and third text encoder read
        instead of the first's text. clip_skip: last layers of the CLIP encoders to leave out.
    size: width and height in pixels. seed: of the first picture; each further one counts up by one.
    spacing, shift, eta: see `Sampler`; None leaves them to the model. guidance_rescale, guidance_interval
        (sigmas), guidance_every, skip_layers...: see `Guidance`.
    image: RGB of that size, to start from. mask: L of that size, white where it is repainted. strength: how
        much of the way from noise is gone again; 1 ignores the picture but for what a mask keeps, 0 keeps it.
    switch_at: share of the way after which a refiner takes over; None is `stages.SWITCH_AT`.
    reuse: what steps take over from steps before; see `runtime.reuse`.
    guidance_embedded: the model takes the guidance as an input. It says so itself, nobody asks for it.
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
    guidance_every: int = 1
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
    switch_at: float | None = None
    reuse: Reuse = "off"
    guidance_embedded: bool = False

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part (Ho and Salimans 2022); at 1 it would cancel out.

        Never where the model takes the guidance as an input: it learned what that does to a prediction.
        """
        return self.guidance > 1 and not self.guidance_embedded

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
        interval, every = self.guidance_interval, self.guidance_every
        return Guidance(self.guidance, self.guidance_rescale, interval, skip, every)

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


def _for_encoders(first: str, second: str | None, third: str | None) -> dict[str, str]:
    return {
        "text_encoder": first,
        "text_encoder_2": first if second is None else second,
        "text_encoder_3": first if third is None else third,
    }
