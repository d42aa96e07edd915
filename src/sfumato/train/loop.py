"""The one training loop: a task draws batches and computes losses; the loop does everything else."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato.train.muon import Muon
from sfumato.train.state import Averaged, Ema, Log, cosine, load_checkpoint, save_checkpoint


class Task(nn.Module, ABC):
    """What a run trains: parameters with `requires_grad` are trained, averaged and kept in checkpoints."""

    @abstractmethod
    def draw(self, size: int, rng: np.random.Generator, generator: torch.Generator) -> tuple[Any, ...]:
        """A batch on the CPU: a function of the two generators, so that a resumed run sees the same ones."""

    @abstractmethod
    def forward(self, *batch: Any) -> dict[str, Tensor]:
        """Scalars: "loss" is minimized, all are logged. Runs under bfloat16 autocast."""

    def matrices(self) -> list[nn.Parameter]:
        """Matrices and convolution weights that Muon trains; AdamW trains the rest."""
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Length and rates of a run.

    steps: optimizer steps; batch: pictures a step and process. rate, matrix_rate: peaks of AdamW's and Muon's
    learning rates, warmed up and then lowered along a cosine. stop_at: end at this step, before the planned
    length; the run can be resumed.
    """

    steps: int
    batch: int
    rate: float
    matrix_rate: float = 2e-2
    weight_decay: float = 0.01
    ema_decay: float = 0.998
    seed: int = 0
    save_every: int = 250
    sample_every: int = 1000
    log_every: int = 50
    stop_at: int | None = None


def run(
    task: Task,
    plan: Plan,
    out: Path,
    say: Callable[[str], None] = print,
    on_sample: Callable[[int], None] | None = None,
) -> None:
    """Train `task`; afterwards it holds the averaged weights.

    Resumes from `out/checkpoint.pt`: batches and noise are functions of seed, step and process, so that a
    run that was killed ends as if it had not been. Appends to `out/log.jsonl`. `on_sample(step)` is called
    every `sample_every` steps with the averaged weights in place.

    Raises InvalidRequest where the checkpoint is of another architecture, SfumatoError where one cannot be
    written (the last good one stays).
    """
    out.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(mixed_precision="bf16")
    model = accelerator.prepare(task)
    optimizers = [accelerator.prepare(optimizer) for optimizer in _optimizers(task, plan)]
    ema = Ema(task, plan.ema_decay)
    checkpoint = out / "checkpoint.pt"
    first = load_checkpoint(checkpoint, task, ema, optimizers)
    log = Log(out, plan.steps, plan.batch * accelerator.num_processes, say)
    last = min(plan.steps, plan.stop_at or plan.steps)
    for step in range(first, last):
        batch = send_to_device(_batch(task, plan, step, accelerator.process_index), accelerator.device)
        _begin_step(optimizers, step, plan.steps)
        with attention(accelerator.device):
            figures = model(*batch)
            accelerator.backward(figures["loss"])
        accelerator.clip_grad_norm_(task.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        ema.update(task)
        if not accelerator.is_main_process:
            continue
        log.add(step, plan.log_every, **{name: value.detach() for name, value in figures.items()})
        if (step + 1) % plan.save_every == 0 or step + 1 == last:
            save_checkpoint(checkpoint, step + 1, task, ema, optimizers)
        if on_sample and (step + 1) % plan.sample_every == 0:
            with Averaged(task, ema):
                on_sample(step + 1)
    ema.copy_to(task)


@contextmanager
def attention(device: torch.device) -> Iterator[None]:
    """On a CPU, attention by plain matrix products.

    Flash attention's backward takes 30 to 40 percent of a step there (PyTorch 2.13, 96 to 256 tokens).
    """
    with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext():
        yield


def _batch(task: Task, plan: Plan, step: int, process: int) -> tuple[Any, ...]:
    seeds = np.random.SeedSequence((plan.seed, step, process))
    generator = torch.Generator().manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    return task.draw(plan.batch, np.random.default_rng(seeds), generator)


def _optimizers(task: Task, plan: Plan) -> list[torch.optim.Optimizer]:
    matrices = [p for p in task.matrices() if p.requires_grad]
    taken = {id(p) for p in matrices}
    rest = [p for p in task.parameters() if p.requires_grad and id(p) not in taken]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=plan.matrix_rate, weight_decay=plan.weight_decay))
    if rest:
        optimizers.append(
            torch.optim.AdamW(rest, lr=plan.rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _begin_step(optimizers: list[Any], step: int, steps: int) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, group["initial_lr"])
        optimizer.zero_grad()
