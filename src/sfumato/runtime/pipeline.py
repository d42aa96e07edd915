"""The whole way: prompt -> conditioning -> noise, on a picture -> sampling loop -> decoded picture."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact import Artifact, find_model, load_artifact
from ..errors import ArtifactError, InvalidRequest
from ..families import Array, Encoded, PromptContext
from ..graphs.token_merging import Method, TokenMerging
from .build import build_request
from .devices import Device, Devices
from .encoders import TextEncoders
from .guidance import GuidedModel, guidance_embedding
from .memory import Kept, available, choose
from .merging import merging_edit, merging_of
from .networks import MakeNetwork, Network
from .parameters import Models, described
from .pictures import ImageInput
from .points import EncodedImage, Point, begin, encode_image
from .progress import Cancel, Clock, OnStepDone, stop_if, watch
from .request import Request
from .result import OnImage, OutputType, Result, finisher
from .reuse import LEAST_STEPS, ReusingDenoiser, enough_steps
from .samplers import run
from .skip_layers import SkippingDenoiser
from .stages import Stage, counted, plan
from .vae import TILE, Decoder, Encoder, check_finite


class Pipeline:
    """A loaded artifact. Networks are compiled on first use, for the size that is asked for.

    One call at a time: networks hold their buffers, so use one pipeline for each thread.
    memory: "high" keeps networks for the next call; "low" holds one at a time, and none between calls (two
        while layers are skipped, which takes a second denoiser).
    make: makes the networks, but for those with skipped layers.
    merging: how tokens merge, which the model's folder says nothing of; see `merging_of`.
    """

    def __init__(
        self,
        artifact: Artifact,
        devices: Devices,
        memory: Kept = "high",
        make: MakeNetwork = Network,
        merging: TokenMerging | None = None,
    ) -> None:
        self.artifact = artifact
        self.devices = devices
        self.memory: Kept = memory
        self.texts = TextEncoders(artifact, devices, memory, make)
        name, space = artifact.family.denoiser, artifact.manifest.latents
        self.merging, merged = merging, merging_edit(merging)
        self.denoiser = make(artifact, name, devices.of(name), merged)
        self.skipping = SkippingDenoiser(artifact, devices.of(name), merged)
        self.reusing = ReusingDenoiser(artifact, devices.of(name), merged, make)
        decoder = make(artifact, "vae_decoder", devices.of("vae_decoder"), None)
        self.decoder = Decoder(decoder, space, TILE[memory])
        self.encoder = None
        if "vae_encoder" in artifact.manifest.components:
            encoder = make(artifact, "vae_encoder", devices.of("vae_encoder"), None)
            self.encoder = Encoder(encoder, space, TILE[memory])

    @classmethod
    def load(
        cls,
        model: str | Path = "mini",
        *,
        device: str | Sequence[str] = "CPU",
        precision: str | None = None,
        threads: int | None = None,
        pinning: bool | None = None,
        cores: str | None = None,
        memory: str = "auto",
        token_merging: float | None = None,
        merging_method: Method = "match",
        beside: Sequence[str | Path] = (),
    ) -> "Pipeline":
        """Open a model folder or an embedded model; see `Device` for precision, threads, pinning and cores.

        device: one for all networks, or "COMPONENT=NAME" for one of them, or several of these.
        beside: other models that are to be loaded too, such as a refiner; "auto" leaves room for them, and
            devices may be for their components.
        memory: "high" keeps all networks loaded; "low" loads one at a time, anew for each call, so that the
            largest one sets the limit; "auto" is high where all fit well into what is free now.
        token_merging, merging_method: share of the tokens, 0 to 0.75, that the denoiser's self-attention does
            without; see `graphs.token_merging`.

        Raises ArtifactError or InvalidRequest, naming what is wrong, before anything heavy.
        """
        artifact, *others = (load_artifact(find_model(each)) for each in (model, *beside))
        kept = choose(memory, [artifact, *others], available())
        like = Device("CPU", precision, threads, cached=kept == "high", pinning=pinning, cores=cores)
        components = [name for each in (artifact, *others) for name in each.manifest.components]
        merging = merging_of(artifact, token_merging, merging_method)
        devices = Devices.parse(device, dict.fromkeys(components), like)
        return cls(artifact, devices, kept, merging=merging)

    def __call__(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        image: ImageInput | None = None,
        mask: ImageInput | None = None,
        strength: float | None = None,
        refiner: "Pipeline | None" = None,
        switch_at: float | None = None,
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
        **further: Any,
    ) -> Result:
        """Make pictures of a prompt. What is None is the model's default; count is 1, and the seed random.

        image: a file, PIL image or array to begin from. mask: the same, white where it is to be repainted.
        strength: how far to leave the image, from 0 to 1.
        refiner: another pipeline that goes the last part of the way, from `switch_at` (0..1) on.
        guidance: how closely to follow the prompt; 1 or less leaves the negative prompt out, as does a model
            that takes the guidance as an input.
        size: width and height in pixels; by default the image's, or the model's.
        seed: of the first picture; each further one counts up by one.
        latents: noise of unit variance to start from, [count, channels, height / 8, width / 8].
        on_step: told after each step. cancel: asked between steps; true raises Cancelled.
        further: whatever else `Request` has, outpaint (see `build_request`), and the names that diffusers
            has: num_inference_steps, guidance_scale, width, height, num_images_per_prompt, mask_image, and
            callback_on_step_end(pipeline, step, timestep, {"latents": ...}), whose result is not used.

        Raises InvalidRequest, before any heavy work, for what cannot be done.
        """
        callback = further.pop("callback_on_step_end", None)
        given = further | {"negative_prompt": negative_prompt, "steps": steps, "guidance": guidance}
        given |= {"size": size, "seed": seed, "count": count, "sampler": sampler, "image": image}
        given |= {"mask": mask, "strength": strength, "switch_at": switch_at}
        request = build_request(self.artifact.manifest, prompt, given)
        if callback is not None:
            if on_step is not None:
                raise InvalidRequest("on_step and callback_on_step_end mean the same: give one of them")
            on_step = _diffusers_callback(self, callback)
        return self.generate(request, latents, output_type, on_step, cancel, refiner=refiner)

    def generate(
        self,
        request: Request,
        latents: Array | None = None,
        output_type: OutputType = "pil",
        on_step: OnStepDone | None = None,
        cancel: Cancel | None = None,
        on_image: OnImage | None = None,
        refiner: "Pipeline | None" = None,
    ) -> Result:
        """The method itself, for a complete request; parameters and errors as for a call.

        on_image: told of each picture as soon as it is done.
        """
        finish = finisher(output_type, request)
        shape = self._latent_shape(request)
        pipelines = [self] if refiner is None else [self, refiner]
        stages = plan(request, [each.artifact.manifest for each in pipelines])
        reuse = enough_steps(request.reuse, max(len(stage.schedule) for stage in stages))
        request = replace(request, reuse=reuse)
        skip = request.how_guided.skip
        if skip is not None:
            self.skipping.without(skip)  # for its refusals; the network is loaded when it is due
        refined_by = None if refiner is None else refiner.artifact.manifest.name
        made_by = Models(self.artifact.manifest.name, refined_by, self.merging)
        clock = Clock()
        with ExitStack() as releasing:
            for each in pipelines:
                releasing.enter_context(each._released_after())
            image = self._encoded_image(request, pipelines, shape, clock, cancel)
            points = begin(image, stages, request, shape, latents)
            for each, stage, tell in zip(pipelines, stages, counted(stages, on_step), strict=True):
                points = each._denoised(request, stage, points, shape, clock, tell, cancel)
                if each.memory == "low":
                    points = iter(list(points))
                    each.release()
            with clock("load"):
                stop_if(cancel)
                if output_type != "latent":
                    self.decoder.load(shape)
            images = []
            for index, point in enumerate(points):
                stop_if(cancel)
                with clock("decode"):
                    images.append(finish(self.decoder, point.finished(stages[-1].schedule)))
                if on_image is not None:
                    on_image(index, images[-1], described(request, index, made_by))
        together = images if output_type == "pil" else np.stack(images)
        return Result(together, request, made_by, clock.seconds)

    def release(self) -> None:
        """Let go of all networks; the next call compiles them again."""
        self.texts.release()
        self.denoiser.release()
        self.skipping.release()
        self.reusing.release()
        self.decoder.release()
        if self.encoder is not None:
            self.encoder.release()

    @contextmanager
    def _released_after(self) -> Iterator[None]:
        """Keep no network after the block, however it ends, where memory is low."""
        try:
            yield
        finally:
            if self.memory == "low":
                self.release()

    def _encoded_image(
        self,
        request: Request,
        pipelines: "Sequence[Pipeline]",
        shape: tuple[int, int, int, int],
        clock: Clock,
        cancel: Cancel | None,
    ) -> EncodedImage:
        manifest = self.artifact.manifest
        if self.encoder is None or (request.image is None and not manifest.inpainting):
            return EncodedImage()
        with clock("load"):
            stop_if(cancel)
            self.encoder.load(shape)
        with clock("encode"):
            inpainting = [each.artifact.manifest.inpainting for each in pipelines]
            image = encode_image(self.encoder, request, manifest.latents.factor, inpainting)
        if self.memory == "low":
            self.encoder.release()
        return image

    def _denoised(
        self,
        request: Request,
        stage: Stage,
        points: Iterator[Point],
        shape: tuple[int, int, int, int],
        clock: Clock,
        on_step: OnStepDone | None,
        cancel: Cancel | None,
    ) -> Iterator[Point]:
        """Take each point to the end of the stage. Networks are loaded at once, the steps made on demand."""
        if not stage.calls:
            return points
        takes_mask = self.artifact.manifest.inpainting
        model = self._guided_model(request, stage, clock, cancel)
        with clock("load"):
            stop_if(cancel)
            model.load(shape, extra=shape[1] + 1 if takes_mask else 0)

        def denoise(index: int, point: Point) -> Point:
            stop_if(cancel)
            schedule = stage.schedule
            space = self.artifact.manifest.latents
            after = watch(index, request.count, stage.calls, schedule.timesteps, on_step, cancel, space)
            with clock("denoise"):
                x = run(
                    stage.sampler,
                    partial(model, extra=point.extra if takes_mask else None),
                    point.at(schedule),
                    schedule,
                    stage.prediction,
                    point.noise,
                    after,
                    eta=request.eta,
                    known=None if takes_mask else point.known,
                )
                check_finite("result of the denoiser", x)
            return replace(point, x=x, sigma=float(schedule.sigmas[-1]))

        return (denoise(index, point) for index, point in enumerate(points))

    def _guided_model(
        self, request: Request, stage: Stage, clock: Clock, cancel: Cancel | None
    ) -> GuidedModel:
        guidance = request.how_guided
        skipping = None if guidance.skip is None else self.skipping.without(guidance.skip)
        encoded = self.texts.encode(request.prompts, request.clip_skip, clock, cancel)
        with clock("encode"):
            contexts = [PromptContext(request.size, self.artifact.manifest.conditioning)]
            if request.guided:
                absent = request.without_negative
                contexts.append(replace(contexts[0], negative=True, absent=absent))
            conditioning = [self._condition(*pair) for pair in zip(encoded, contexts, strict=True)]
            width = contexts[0].settings.guidance_embedding_dim
            if width is not None:
                conditioning[0]["timestep_cond"] = guidance_embedding(request.guidance, width)
        family, schedule = self.artifact.family, stage.schedule
        if request.reuse == "off" or len(schedule) < LEAST_STEPS:
            return GuidedModel(self.denoiser, family, conditioning, guidance, schedule, skipping)
        deterministic = not stage.sampler.draws_noise(request.eta)
        network = self.reusing.by(request.reuse, schedule, deterministic)
        return GuidedModel(network, family, conditioning, guidance, schedule, skipping, network.keys)

    def _condition(self, encoded: dict[str, Encoded], context: PromptContext) -> dict[str, Array]:
        """The denoiser's inputs for one text."""
        try:
            return self.artifact.family.conditioning(encoded, context)
        except ValueError as error:
            folder = self.artifact.path
            raise ArtifactError(f"{folder}: its text encoders do not fit together ({error})") from error

    def _latent_shape(self, request: Request) -> tuple[int, int, int, int]:
        space = self.artifact.manifest.latents
        width, height = request.size
        return 1, space.channels, height // space.factor, width // space.factor


def _diffusers_callback(pipeline: Pipeline, callback: Callable[..., Any]) -> OnStepDone:
    return lambda step: callback(pipeline, step.index, step.timestep, {"latents": step.latents})
