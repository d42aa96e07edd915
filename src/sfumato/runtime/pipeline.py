"""Text to image: prompt -> conditioning -> noise -> sampling loop -> decoded picture."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..artifact import Artifact, find_model, load_artifact
from ..errors import ArtifactError, InvalidRequest
from ..families import Array, Encoded, PromptContext
from .devices import Device
from .encoders import encode, text_encoders
from .guidance import GuidedModel
from .memory import Kept, available, choose
from .networks import Network
from .noise import Generator
from .progress import Cancel, Clock, OnStepDone, stop_if, watch
from .request import Request, build_request
from .samplers import find_sampler, run
from .vae import TILE, Decoder, check_finite, to_image

OutputType = Literal["pil", "np", "latent"]


@dataclass(frozen=True, eq=False)
class Result:
    """What a call made, and how.

    images: a list of PIL images; for "np" float32 pixels in 0..1, [count, height, width, 3]; for "latent"
        the denoised latents in the model's scale, [count, channels, height / 8, width / 8] float32.
    seconds: wall time by stage: "load", "encode", "denoise", "decode" (but for "latent") and "total".
    """

    images: Any
    request: Request
    model: str
    seconds: dict[str, float]

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture: given alone, it makes the same one."""
        return list(self.request.seeds)

    def parameters(self, index: int = 0) -> str:
        """The `parameters` text of one picture, as other tools read it from a PNG."""
        return self.request.parameters(index, self.model)


class Pipeline:
    """A loaded artifact. Networks are compiled on first use, for the size that is asked for.

    One call at a time: networks hold their buffers, so use one pipeline for each thread.
    memory: "high" keeps networks for the next call; "low" holds one at a time, and none between calls.
    """

    def __init__(self, artifact: Artifact, device: Device, memory: Kept = "high") -> None:
        self.artifact = artifact
        self.device = device
        self.memory: Kept = memory
        self.encoders = text_encoders(artifact, device)
        self.denoiser = Network(artifact, artifact.family.denoiser, device)
        self.decoder = Decoder(
            Network(artifact, "vae_decoder", device), artifact.manifest.latents, TILE[memory]
        )

    @classmethod
    def load(
        cls,
        model: str | Path = "mini",
        *,
        device: str = "CPU",
        precision: str | None = None,
        threads: int | None = None,
        memory: str = "auto",
    ) -> "Pipeline":
        """Open a model folder or an embedded model; see `Device` for device, precision and threads.

        memory: "high" keeps all networks loaded; "low" loads one at a time, anew for each call, so that the
            largest one sets the limit; "auto" is high where all fit well into what is free now.

        Raises ArtifactError or InvalidRequest, naming what is wrong, before anything heavy.
        """
        artifact = load_artifact(find_model(model))
        kept = choose(memory, artifact, available())
        return cls(artifact, Device(device, precision, threads, cached=kept == "high"), kept)

    def __call__(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
        seed: int | None = None,
        count: int | None = None,
        sampler: str | None = None,
        latents: Array | None = None,
        output_type: OutputType = "pil",
        on_step: OnStepDone | None = None,
        cancel: Cancel | None = None,
        **diffusers_names: Any,
    ) -> Result:
        """Make pictures of a prompt. What is None is the model's default; count is 1, and the seed random.

        guidance: how closely to follow the prompt; 1 or less leaves the negative prompt out.
        size: width and height in pixels. seed: of the first picture; each further one counts up by one.
        latents: noise of unit variance to start from, [count, channels, height / 8, width / 8].
        on_step: told after each step. cancel: asked between steps; true raises Cancelled.
        diffusers_names: num_inference_steps, guidance_scale, width, height, num_images_per_prompt, and
            callback_on_step_end(pipeline, step, timestep, {"latents": ...}), whose result is not used.

        Raises InvalidRequest, before any heavy work, for what cannot be done.
        """
        callback = diffusers_names.pop("callback_on_step_end", None)
        given = diffusers_names | {"negative_prompt": negative_prompt, "steps": steps, "guidance": guidance}
        given |= {"size": size, "seed": seed, "count": count, "sampler": sampler}
        request = build_request(self.artifact.manifest, prompt, given)
        if callback is not None:
            if on_step is not None:
                raise InvalidRequest("on_step and callback_on_step_end mean the same: give one of them")
            on_step = _diffusers_callback(self, callback)
        return self.generate(request, latents, output_type, on_step, cancel)

    def generate(
        self,
        request: Request,
        latents: Array | None = None,
        output_type: OutputType = "pil",
        on_step: OnStepDone | None = None,
        cancel: Cancel | None = None,
        on_image: Callable[[int, Any], None] | None = None,
    ) -> Result:
        """The method itself, for a complete request; parameters and errors as for a call.

        on_image: told the number of each picture, from 0, and the picture, as soon as it is done.
        """
        sampling = self.artifact.manifest.sampling
        shape = self._latent_shape(request)
        finish = _finish(output_type)
        given_noise = _checked_noise(latents, (request.count, *shape[1:]))
        sampler = find_sampler(request.sampler, "flow" if sampling.prediction == "flow" else "vp")
        schedule = sampler.schedule(sampling.scheduler, request.steps)
        clock = Clock()

        def denoise(model: GuidedModel) -> Iterator[Array]:
            for index, seed in enumerate(request.seeds):
                stop_if(cancel)
                noise = Generator(seed)
                unit = noise.randn(shape) if given_noise is None else given_noise[index : index + 1]
                calls = sampler.calls(request.steps)
                after = watch(index, request.count, calls, schedule.timesteps, on_step, cancel)
                with clock("denoise"):
                    x = run(sampler, model, schedule.begin(unit), schedule, sampling.prediction, noise, after)
                    check_finite("result of the denoiser", x)
                yield schedule.finish(x)

        with self._released_after():
            model = self._guided_model(request, clock, cancel)
            with clock("load"):
                stop_if(cancel)
                model.load(shape)
            denoised = denoise(model)
            if self.memory == "low":
                denoised = iter(list(denoised))
                self.denoiser.release()
            with clock("load"):
                stop_if(cancel)
                if output_type != "latent":
                    self.decoder.load(shape)
            images = []
            for index, x in enumerate(denoised):
                stop_if(cancel)
                with clock("decode"):
                    images.append(finish(self.decoder, x))
                if on_image is not None:
                    on_image(index, images[-1])
        together = images if output_type == "pil" else np.stack(images)
        return Result(together, request, self.artifact.manifest.name, clock.seconds)

    def release(self) -> None:
        """Let go of all networks; the next call compiles them again."""
        for encoder in self.encoders.values():
            encoder.release()
        self.denoiser.release()
        self.decoder.release()

    @contextmanager
    def _released_after(self) -> Iterator[None]:
        """Keep no network after the block, however it ends, where memory is low."""
        try:
            yield
        finally:
            if self.memory == "low":
                self.release()

    def _guided_model(self, request: Request, clock: Clock, cancel: Cancel | None) -> GuidedModel:
        texts = [request.prompt, request.negative_prompt] if request.guided else [request.prompt]
        encoded = encode(self.encoders, [text or "" for text in texts], self.memory, clock, cancel)
        with clock("encode"):
            conditioning = [
                self._condition(each, request, absent=text is None)
                for each, text in zip(encoded, texts, strict=True)
            ]
        return GuidedModel(self.denoiser, self.artifact.family, conditioning, request.guidance)

    def _condition(self, encoded: dict[str, Encoded], request: Request, absent: bool) -> dict[str, Array]:
        """The denoiser's inputs for one text; absent: None was given, which is encoded as "" at most."""
        context = PromptContext(request.size, self.artifact.manifest.conditioning, absent)
        try:
            return self.artifact.family.conditioning(encoded, context)
        except ValueError as error:
            folder = self.artifact.path
            raise ArtifactError(f"{folder}: its text encoders do not fit together ({error})") from error

    def _latent_shape(self, request: Request) -> tuple[int, int, int, int]:
        space = self.artifact.manifest.latents
        width, height = request.size
        return 1, space.channels, height // space.factor, width // space.factor


def _finish(output_type: str) -> Callable[[Decoder, Array], Any]:
    """What to make of denoised latents [1, channels, height, width]."""
    ways: dict[str, Callable[[Decoder, Array], Any]] = {
        "pil": lambda decode, latents: to_image(decode(latents)),
        "np": lambda decode, latents: decode(latents),
        "latent": lambda decode, latents: latents[0],
    }
    if output_type not in ways:
        raise InvalidRequest(f"output_type {output_type!r}: one of {', '.join(ways)}")
    return ways[output_type]


def _checked_noise(latents: Array | None, shape: tuple[int, ...]) -> Array | None:
    if latents is None:
        return None
    try:
        noise = np.asarray(latents, np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"latents: must be an array of numbers ({error})") from error
    if noise.shape != shape or not np.isfinite(noise).all():
        raise InvalidRequest(f"latents of shape {noise.shape}: must be finite numbers of shape {shape}")
    return noise


def _diffusers_callback(pipeline: Pipeline, callback: Callable[..., Any]) -> OnStepDone:
    return lambda step: callback(pipeline, step.index, step.timestep, {"latents": step.latents})
