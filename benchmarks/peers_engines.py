"""How each peer makes a picture. Libraries are imported where they are used: importing is part of a start."""

import inspect
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL.Image import Image, fromarray

Mark = Callable[[], None]
"""Called at the end of each step."""
Make = Callable[[int, Mark], Image]
"""Makes a picture of so many steps."""
NEGATIVE = ""


@dataclass(frozen=True)
class Job:
    """What a process is to do. source: a checkpoint or model folder. options: the engine's own.

    sampler: "ddim", or None for the model's own. pictures: steps of each, in order.
    """

    engine: str
    source: str
    prompt: str
    guidance: float
    seed: int
    width: int
    height: int
    threads: int
    pictures: tuple[int, ...]
    sampler: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def sfumato_engine(job: Job) -> Make:
    """A model folder; options are those of `Pipeline.load` and of a pipeline's call."""
    from sfumato import Pipeline

    known = inspect.signature(Pipeline.load).parameters
    loading = {name: value for name, value in job.options.items() if name in known}
    calling = {name: value for name, value in job.options.items() if name not in known}
    pipe = Pipeline.load(job.source, threads=job.threads, **loading)

    def make(steps: int, mark: Mark) -> Image:
        result = pipe(
            job.prompt,
            negative_prompt=NEGATIVE,
            steps=steps,
            guidance=job.guidance,
            size=(job.width, job.height),
            seed=job.seed,
            sampler=job.sampler,
            on_step=lambda step: mark(),
            **calling,
        )
        image: Image = result.images[0]
        return image

    return make


def diffusers_engine(job: Job) -> Make:
    """A diffusers folder in PyTorch; options: dtype, channels_last and compiled.

    Compiled with frozen weights, which lets the compiler put them in the order that its kernels read.
    """
    compiled = job.options.get("compiled", False)
    if compiled:
        os.environ["TORCHINDUCTOR_FREEZING"] = "1"
    import torch
    from diffusers import DDIMScheduler, DiffusionPipeline

    torch.set_num_threads(job.threads)
    torch.set_grad_enabled(False)
    pipe = DiffusionPipeline.from_pretrained(
        job.source, torch_dtype=getattr(torch, job.options["dtype"]), use_safetensors=True, **_absent(job)
    )
    pipe.set_progress_bar_config(disable=True)
    if job.sampler == "ddim":
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    if job.options.get("channels_last", False):
        denoiser.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if compiled:
        denoiser.compile()
        pipe.vae.decoder.compile()

    def make(steps: int, mark: Mark) -> Image:
        def step_done(*given: Any) -> dict[str, Any]:
            mark()
            return {}

        result = pipe(
            job.prompt,
            negative_prompt=NEGATIVE,
            num_inference_steps=steps,
            guidance_scale=job.guidance,
            width=job.width,
            height=job.height,
            generator=torch.Generator("cpu").manual_seed(job.seed),
            callback_on_step_end=step_done,
        )
        image: Image = result.images[0]
        return image

    return make


def _absent(job: Job) -> dict[str, None]:
    """SD3 without its T5, which it can do without: said to diffusers."""
    index = json.loads((Path(job.source) / "model_index.json").read_text())
    if "text_encoder_2" not in index or "transformer" not in index or index.get("text_encoder_3", [None])[0]:
        return {}
    return {"text_encoder_3": None, "tokenizer_3": None}


def genai_engine(job: Job) -> Make:
    """A model folder in OpenVINO GenAI, compiled for this size; option: taylorseer, the cache."""
    import openvino_genai as genai  # type: ignore[import-untyped]

    pipe = genai.Text2ImagePipeline(job.source)
    if job.sampler == "ddim":
        pipe.set_scheduler(_ddim(genai, Path(job.source) / "scheduler" / "scheduler_config.json"))
    pipe.reshape(1, job.height, job.width, job.guidance)
    pipe.compile("CPU", PERFORMANCE_HINT="LATENCY", INFERENCE_NUM_THREADS=job.threads)
    settings = pipe.get_generation_config()
    settings.update_generation_config(
        negative_prompt=NEGATIVE,
        width=job.width,
        height=job.height,
        guidance_scale=job.guidance,
        rng_seed=job.seed,
    )
    if job.options.get("taylorseer", False):
        settings.taylorseer_config = genai.TaylorSeerCacheConfig()
    pipe.set_generation_config(settings)

    def make(steps: int, mark: Mark) -> Image:
        def step_done(step: int, of: int, latent: Any) -> bool:
            mark()
            return False

        made = pipe.generate(job.prompt, num_inference_steps=steps, callback=step_done)
        return fromarray(made.data[0])

    return make


def _ddim(genai: Any, config: Path) -> Any:
    """GenAI's DDIM for a model's noise; it refuses to clip, which DDIM does where a file does not say."""
    settings = json.loads(config.read_text()) | {"clip_sample": False}
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / config.name
        own.write_text(json.dumps(settings))
        return genai.Scheduler.from_config(own, genai.Scheduler.Type.DDIM)


def cpp_engine(job: Job) -> Make:
    """A diffusers folder of UNets in stable-diffusion.cpp, Euler; options: wtype, and those of a call."""
    from stable_diffusion_cpp import StableDiffusion  # type: ignore[import-not-found]

    names = ("wtype", "diffusion_flash_attn", "diffusion_conv_direct", "vae_conv_direct")
    loading = {name: job.options[name] for name in names}
    calling = {name: value for name, value in job.options.items() if name not in loading}
    pipe = StableDiffusion(
        model_path=job.source,
        n_threads=job.threads,
        vae_decode_only=True,
        verbose=False,
        **loading,
    )

    def make(steps: int, mark: Mark) -> Image:
        def progress(step: int, of: int, seconds: float) -> None:
            if step and of == steps:
                mark()

        made: Image = pipe.generate_image(
            job.prompt,
            negative_prompt=NEGATIVE,
            width=job.width,
            height=job.height,
            cfg_scale=job.guidance,
            sample_method="euler",
            sample_steps=steps,
            seed=job.seed,
            progress_callback=progress,
            **calling,
        )[0]
        return made

    return make


def onnx_engine(job: Job) -> Make:
    """Networks that `peers_onnx.py` exported, in ONNX Runtime."""
    from peers_onnx import OnnxPipeline

    pipe = OnnxPipeline(Path(job.source), job.threads)

    def make(steps: int, mark: Mark) -> Image:
        return fromarray(pipe(job.prompt, NEGATIVE, steps, job.guidance, job.seed, mark))

    return make


ENGINES: dict[str, Callable[[Job], Make]] = {
    "sfumato": sfumato_engine,
    "diffusers": diffusers_engine,
    "genai": genai_engine,
    "cpp": cpp_engine,
    "onnx": onnx_engine,
}
