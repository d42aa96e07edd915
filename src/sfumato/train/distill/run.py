"""A distillation from checkpoint to LoRA: method, training, sample grids, files."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from sfumato.errors import InvalidRequest
from sfumato.files import write_errors
from sfumato.runtime.png import save_png
from sfumato.train import loop
from sfumato.train.distill.flash import FlashTask
from sfumato.train.distill.lcm import LcmTask
from sfumato.train.distill.lora import Sampling, add_lora, halve, save_lora
from sfumato.train.distill.segments import SegmentsTask
from sfumato.train.distill.source import Source, open_source
from sfumato.train.examples import open_examples
from sfumato.train.processes import device, one_at_a_time
from sfumato.train.settings import keep_settings, lasting

Method = Literal["lcm", "flash", "segments"]
METHODS: dict[Method, type[LcmTask] | type[FlashTask] | type[SegmentsTask]] = {
    "lcm": LcmTask,
    "flash": FlashTask,
    "segments": SegmentsTask,
}
FOR_UNETS: tuple[Method, ...] = ("lcm", "segments")
FOR_FLOWS: tuple[Method, ...] = ("segments", "flash")
MAX_FEW_STEPS = 16
SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to distill to.

    method: lcm or segments for UNets, segments or flash for flows; None: the first. guidance: the teacher's;
    None: the checkpoint's own. few_steps: how many the student is made for.
    """

    method: Method | None = None
    guidance: float | None = None
    rank: int = 64
    few_steps: int = 4


def distill(
    source: Path,
    data: Path,
    out: Path,
    settings: Settings,
    plan: loop.Plan,
    say: Callable[[str], None] = print,
) -> None:
    """Distill the diffusers folder `source` on the pictures in `data` into a LoRA in `out` (see `save_lora`).

    Resumes from `out/checkpoint.pt`; few-step pictures go to `out/samples-STEP.png`. Raises CheckpointError
    where the source cannot be used, InvalidRequest for settings, data, or a run begun with other settings.
    """
    if not 1 <= settings.few_steps <= MAX_FEW_STEPS:
        raise InvalidRequest(f"few steps {settings.few_steps}: must be from 1 to {MAX_FEW_STEPS}")
    base = open_source(source)
    method = _method(settings, base, source)
    guidance = base.guidance if settings.guidance is None else settings.guidance
    torch.manual_seed(plan.seed)
    add_lora(base.denoiser, base.family.denoiser, settings.rank)
    halve(base.denoiser)
    examples = open_examples(data, base.pipe.vae, out, side=base.side, say=say)
    begun = asdict(replace(settings, method=method, guidance=guidance)) | lasting(plan)
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(out):
        keep_settings(out, {"source": str(source), "data": str(data), **begun})
    task = METHODS[method](base, examples, guidance, settings.few_steps)
    prompts = examples.draw(SAMPLES, np.random.default_rng(plan.seed))[1]

    def sample(step: int) -> None:
        save_png(sample_grid(base, task.sampling, prompts), out / f"samples-{step}.png")

    base.pipe.to(device())
    loop.run(task, plan, out, say, sample)
    if loop.is_main():
        save_lora(base.denoiser, base.family.denoiser, task.sampling, out)


def _method(settings: Settings, base: Source, source: Path) -> Method:
    fitting = FOR_FLOWS if base.family.name == "sd3" else FOR_UNETS
    method = settings.method or fitting[0]
    if method not in fitting:
        kind = "UNets (sd, sdxl)" if method in FOR_UNETS else "flow-matching transformers (sd3)"
        raise InvalidRequest(
            f"method {method!r} is for {kind}, but {source} is {base.family.name}; use {' or '.join(fitting)}"
        )
    return method


def sample_grid(base: Source, sampling: Sampling, prompts: list[str]) -> Image.Image:
    """Pictures of the prompts side by side, made by diffusers' pipeline as the LoRA is meant to be used."""
    pipe = base.pipe
    teacher_scheduler = pipe.scheduler
    pipe.scheduler = sampling.scheduler_from(teacher_scheduler)
    try:
        return base.grid(prompts, sampling.steps, sampling.guidance)
    finally:
        pipe.scheduler = teacher_scheduler
