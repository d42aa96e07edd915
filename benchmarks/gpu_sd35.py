"""SD3.5 Large and Medium on one GPU, in each precision of `torch:SOURCE?quant=...`: seconds and memory.

    pip install 'sfumato[gpu]'
    python benchmarks/gpu_sd35.py                # at most eight minutes; a table
    python benchmarks/gpu_sd35.py --json --steps 10 > sd35.json

builds the published networks with random weights on the GPU (nothing is downloaded or written) and makes a
picture of 1024x1024 in 28 steps with guidance: a batch of two through the transformer, then the VAE's
decoder. The prompt's embeddings (333 tokens, T5 included) are random and ready-made: text encoders are
neither held nor timed, while the published times include them. A row that runs out of time is scaled up from
the steps that it made, and says so; one that fails says why. Without a GPU the same code runs on tiny
networks, and nothing counts as measured.
"""

import argparse
import gc
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import diffusers
import torch
from full_size import MODELS, Network

from sfumato.torch_backend.quantize import check_quant, compile_blocks, held_bytes, quantize
from sfumato.torch_backend.source import GPU_ONLY

VARIANTS = (
    ("sd35-large", "none", 7.0),
    ("sd35-large", "nf4", 18.0),
    ("sd35-medium", "none", 4.0),
    ("sd35-large", "fp8", None),
    ("sd35-large", "int8", None),
    ("sd35-large", "int4", None),
)
"""Model, quantization, and the seconds published for an H100 (with text encoders, uncompiled)."""
GUIDANCE = {"sd35-large": 3.5, "sd35-medium": 4.5}
TOKENS = 333
TINY = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "caption_projection_dim": 128,
    "pos_embed_max_size": 32,
    "dual_attention_layers": (0,),
}
TINY_VAE = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
HEADINGS = ("model", "weights", "", "picture", "step", "decode", "first", "peak", "transformer", "on an H100")


@dataclass(frozen=True)
class Task:
    """What each row does: size in pixels, steps, and seconds that a row may take."""

    device: torch.device
    size: int
    steps: int
    row_limit: float

    @property
    def measured(self) -> bool:
        """Whether it counts, or only shows that the code runs."""
        return bool(self.device.type == "cuda")


@dataclass(frozen=True)
class Row:
    """One line of the table; seconds, and bytes.

    result: "measured", "scaled from 5 of 28 steps", "not measured (...)" or "failed: ...". first: the run
    before, of two steps, in which kernels are chosen and compiled. picture: denoising and decoding.
    """

    model: str
    quant: str
    compiled: bool
    published: float | None
    result: str
    picture: float | None = None
    step: float | None = None
    decode: float | None = None
    first: float | None = None
    peak_bytes: int | None = None
    transformer_bytes: int | None = None


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--steps", type=int, default=28, help="of a picture (28)")
    arguments.add_argument("--size", type=int, default=1024, help="of its sides, in pixels (1024)")
    arguments.add_argument("--row-limit", type=float, default=75, help="seconds for a row (75)")
    arguments.add_argument("--limit", type=float, default=420, help="seconds after which no row begins (420)")
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    chosen = arguments.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    task = Task(device, chosen.size, chosen.steps, chosen.row_limit)
    if not task.measured:
        print("no GPU: tiny networks on the processor; nothing is measured", file=sys.stderr)
        task = replace(task, size=64, steps=3)
    rows = []
    for row in measured(task, time.monotonic() + chosen.limit):
        print(" ".join(cells(row)), file=sys.stderr, flush=True)
        rows.append(row)
    if chosen.json:
        settings = {"size": task.size, "steps": task.steps, "tokens": TOKENS, "embeddings": "random"}
        document = {"environment": environment(device), **settings, "rows": list(map(asdict, rows))}
        print(json.dumps(document))
    else:
        print_table([HEADINGS, *map(cells, rows)])


def measured(task: Task, end: float) -> Iterator[Row]:
    """The rows, each variant as it is and then compiled; none begins after `end` (monotonic seconds)."""
    for model, quant, published in VARIANTS:
        rows = [
            Row(model, quant, compiled, published if not compiled else None, "") for compiled in (False, True)
        ]
        if not task.measured and quant in GPU_ONLY:
            yield from (replace(row, result="not measured (needs a GPU)") for row in rows)
            continue
        if time.monotonic() > end:
            yield from (replace(row, result="not measured (the time was up)") for row in rows)
            continue
        pipe = None
        for row in rows:
            try:
                with time_limit(task.row_limit):
                    if pipe is None:
                        pipe = built(model, quant, task)
                    if row.compiled:
                        compile_blocks(pipe.transformer)
                    done = timed(row, pipe, task)
            except Exception as error:
                line = (str(error).strip().splitlines() or [""])[0][:200]
                done = replace(row, result=f"failed: {type(error).__name__}: {line}")
            yield done
        del pipe
        gc.collect()
        torch.compiler.reset()
        torch.cuda.empty_cache()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so long: steps end in time by themselves, compilers do not."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def built(model: str, quant: str, task: Task) -> Any:
    """A pipeline without text encoders, its weights random, bf16 on a GPU."""
    check_quant(quant, task.device)
    dtype = torch.bfloat16 if task.measured else torch.float32
    networks = MODELS[model].networks
    transformer = network(diffusers.SD3Transformer2DModel, networks["transformer"], TINY, dtype, task)
    vae = network(diffusers.AutoencoderKL, networks["vae"], TINY_VAE, dtype, task)
    if quant != "none":
        quantize(transformer, quant, dtype=dtype, device=task.device)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(MODELS[model].scheduler)
    pipe = diffusers.StableDiffusion3Pipeline(transformer, scheduler, vae, *(None,) * 6)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def network(kind: Any, described: Network, tiny: dict[str, Any], dtype: torch.dtype, task: Task) -> Any:
    """One network with its published configuration, checked by its parameters; tiny without a GPU."""
    config = dict(described.config) | ({} if task.measured else tiny)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with task.device:
            module = kind(**config).to(dtype).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(usual)
    found = sum(parameter.numel() for parameter in module.parameters()) / 1e6
    if task.measured and abs(found - described.millions) > 0.01:
        raise ValueError(f"{described.class_name} has {found:.2f} M parameters, not {described.millions}")
    return module


def timed(row: Row, pipe: Any, task: Task) -> Row:
    """Two steps that do not count, then the picture, whose steps end at two thirds of the row's time."""
    began = time.monotonic()
    run(pipe, row.model, replace(task, steps=2), began + task.row_limit)
    first = time.monotonic() - began
    if task.measured:
        torch.cuda.reset_peak_memory_stats()
    marks, decode = run(pipe, row.model, task, began + task.row_limit * 2 / 3)
    made = len(marks) - 1
    step = (marks[-1] - marks[0]) / made
    if not task.measured:
        return replace(row, result="not measured (self-test passed)")
    return replace(
        row,
        result="measured" if made == task.steps else f"scaled from {made} of {task.steps} steps",
        picture=step * task.steps + decode,
        step=step,
        decode=decode,
        first=first,
        peak_bytes=torch.cuda.max_memory_allocated(),
        transformer_bytes=held_bytes(pipe.transformer),
    )


def run(pipe: Any, model: str, task: Task, end: float) -> tuple[list[float], float]:
    """When denoising began and each step ended, and the seconds of decoding. No step begins after `end`."""
    dtype = pipe.vae.dtype
    embeds, pooled = (
        torch.randn(shape, device=task.device, dtype=dtype) for shape in ((1, TOKENS, 4096), (1, 2048))
    )
    marks: list[float] = []

    def now() -> float:
        if task.measured:
            torch.cuda.synchronize()
        return time.monotonic()

    def stepped(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        marks.append(now())
        pipe._interrupt = marks[-1] > end
        return {}

    marks.append(now())
    with torch.no_grad():
        latents = pipe(
            prompt_embeds=embeds,
            negative_prompt_embeds=-embeds,
            pooled_prompt_embeds=pooled,
            negative_pooled_prompt_embeds=-pooled,
            num_inference_steps=task.steps,
            guidance_scale=GUIDANCE[model],
            width=task.size,
            height=task.size,
            generator=torch.Generator("cpu").manual_seed(0),
            callback_on_step_end=stepped,
            output_type="latent",
        ).images
        began = now()
        config = pipe.vae.config
        picture = pipe.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
        pipe.image_processor.postprocess(picture)
    return marks, now() - began


def environment(device: torch.device) -> dict[str, str]:
    found = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"}
    for package in ("torch", "diffusers", "bitsandbytes", "torchao"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def cells(row: Row) -> tuple[str, ...]:
    """A row as text; what came of it stands where the figures would."""
    weights = "bf16" if row.quant == "none" else row.quant
    name = (row.model, weights, "compiled" if row.compiled else "eager")
    published = "-" if row.published is None else f"{row.published:g} s"
    if row.picture is None:
        return (*name, row.result, *["-"] * 5, published)
    seconds = [
        f"{value:.3g} s" for value in (row.picture, row.step, row.decode, row.first) if value is not None
    ]
    if row.result != "measured":
        seconds[0] += f" ({row.result})"
    sizes = [f"{(value or 0) / 1e9:.1f} GB" for value in (row.peak_bytes, row.transformer_bytes)]
    return (*name, *seconds, *sizes, published)


def print_table(rows: list[tuple[str, ...]]) -> None:
    """As Markdown, to paste."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    for row in rows:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


if __name__ == "__main__":
    main()
