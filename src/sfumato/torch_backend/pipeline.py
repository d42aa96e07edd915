"""A diffusers checkpoint in PyTorch whose every picture is timed."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from PIL.Image import Image

from ..compare.records import Model, Run
from ..compare.stopwatch import Stopwatch
from ..convert.checkpoints import Json
from ..errors import InvalidRequest, MissingDependency
from ..families import FAMILIES
from ..manifest import LatentSpace
from ..runtime import values
from ..runtime.samplers import MAX_STEPS
from .describe import described
from .loading import call_options, found_checkpoint, found_device, loaded
from .quantize import check_quant
from .source import TorchSource, parse_source


class TorchPipeline:
    """A checkpoint as diffusers runs it, with its own scheduler.

    The initial noise of a seed is that of Sfumato's pipelines, so a picture is the same as that of the model
    folder made of the checkpoint; but for long prompts, which diffusers cuts, and weighted words, which it
    reads as they are written.
    """

    load_seconds = 0.0  # nothing is left to the first picture

    def __init__(self, pipe: Any, model: Model, space: LatentSpace, options: Json, device: Any) -> None:
        """Take a diffusers pipeline that computes on `device`; options: what all its calls are given."""
        self.model = model
        self._pipe = pipe
        self._space = space
        self._options = options
        self._device = device
        self._watch = Stopwatch("")
        self._encode = 0.0
        for name, module in _networks(pipe).items():
            _observe(module, self._now, partial(self._ran, name))
        pipe.encode_prompt = self._timed(pipe.encode_prompt)

    @classmethod
    def load(
        cls, source: str | Path | TorchSource, *, name: str | None = None, threads: int | None = None
    ) -> "TorchPipeline":
        """Load a diffusers folder, or a model on the Hub as `org/name`, from safetensors only.

        source: may end in options, as "sd35-large?quant=nf4&device=cuda"; see `TorchSource`. threads:
        processor threads; None leaves it to PyTorch. Missing parts that a family can do without stay
        missing, and there is no safety checker. Raises CheckpointError for what cannot be read or does not
        make pictures of prompts, InvalidRequest for options that cannot be, here or anywhere, and
        MissingDependency without the extra `convert`, or `gpu` for quantization.
        """
        if threads is not None:
            values.whole("threads", threads, 1, 4096)
        if not isinstance(source, TorchSource):
            source = parse_source(str(source))
        try:
            import diffusers  # noqa: F401 (before anything is downloaded)
            import torch

            device = found_device(source)
            check_quant(source.quant, device)
            checkpoint, space = found_checkpoint(source)
            if threads is not None:
                torch.set_num_threads(threads)
            pipe, held = loaded(source, checkpoint, device)
        except ModuleNotFoundError as error:
            raise MissingDependency(
                f"torch:{source}: PyTorch's pipelines need the package {error.name!r}; "
                "install it with `pip install 'sfumato[convert]'`"
            ) from error
        name = name or checkpoint.folder.resolve().name
        model = described(checkpoint, space, source, name, held)
        return cls(pipe, model, space, call_options(checkpoint), device)

    def generate(
        self,
        prompt: str,
        *,
        negative: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> tuple[Image, Run]:
        """One picture, and what it took; None is the model's default. Raises InvalidRequest."""
        import torch

        steps = values.whole("steps", self.model.steps if steps is None else steps, 1, MAX_STEPS)
        guidance = self.model.guidance if guidance is None else guidance
        guidance = values.guidance("guidance", guidance)
        width, height = values.size(size or self._space.default_size, self._space)
        seed = values.whole("seed", seed, 0, values.MAX_SEED)
        generator = torch.Generator("cpu").manual_seed(seed)
        watch = self._watch = Stopwatch(FAMILIES[self.model.family].denoiser)
        began = time.perf_counter()
        result = self._pipe(
            prompt,
            negative_prompt=negative,
            num_inference_steps=steps,
            guidance_scale=guidance,
            width=width,
            height=height,
            generator=generator,
            latents=self._noise(width, height, generator),
            callback_on_step_end=partial(self._step_done, watch),
            **self._options,
        )
        ended = time.perf_counter()
        image: Image = result.images[0]
        return image, Run(
            encode=self._encode,
            steps=watch.steps,
            denoise=watch.marks[-1] - watch.marks[0],
            decode=ended - watch.marks[-1],
            total=ended - began,
            components=watch.components,
        )

    def profile(self) -> NoReturn:
        """Raise InvalidRequest: single operations are told by OpenVINO alone."""
        raise InvalidRequest(f"{self.model.name}: no profile; only model folders have one")

    def _noise(self, width: int, height: int, generator: Any) -> Any:
        """The seed's noise. Drawn in float32, as draws in 16 bits give other numbers."""
        import torch

        factor = self._space.factor
        shape = (1, self._space.channels, height // factor, width // factor)
        return torch.randn(shape, generator=generator).to(self._pipe.vae.dtype)

    def _now(self) -> float:
        """The time at which all work that was asked for is done: a GPU works behind the caller's back."""
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _step_done(self, watch: Stopwatch, pipe: Any, index: int, timestep: Any, tensors: Json) -> Json:
        self._now()
        watch.step()
        return {}

    def _ran(self, name: str, began: float, ended: float) -> None:
        self._watch.ran(name, began, ended)

    def _timed(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = self._now()
            encoded = encode(*arguments, **options)
            self._encode = self._now() - began
            return encoded

        return timed


def _networks(pipe: Any) -> dict[str, Any]:
    """The modules that a picture of a prompt needs, by the components' names in model folders."""
    names = ("text_encoder", "text_encoder_2", "text_encoder_3", "unet", "transformer")
    found = {name: getattr(pipe, name, None) for name in names}
    return {name: module for name, module in found.items() if module is not None} | {
        "vae_decoder": pipe.vae.decoder
    }


def _observe(module: Any, now: Callable[[], float], ran: Callable[[float, float], None]) -> None:
    """Tell `ran` when each of a module's calls began and ended."""
    began = [0.0]

    def before(*_: Any) -> None:
        began[0] = now()

    def after(*_: Any) -> None:
        ran(began[0], now())

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)
