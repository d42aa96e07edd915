"""The one training loop: a task draws batches and computes losses; the loop does everything else."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato.errors import InvalidRequest, SfumatoError
from sfumato.files import write_errors
from sfumato.runtime.values import not_negative, number
from sfumato.train.log import Log
from sfumato.train.muon import Muon
from sfumato.train.optimizers import Schedule, adamw, rate_at
from sfumato.train.processes import (
    average_gradients,
    check_same_step,
    is_main,
    mean_figures,
    on_cpu,
    share_weights,
)
from sfumato.train.state import Ema, load_checkpoint, save_checkpoint, trained

__all__ = [
    "OnSample",
    "Plan",
    "Schedule",
    "Task",
    "attention",
    "check_plan",
    "is_main",
    "run",
]

OnSample = Callable[[int], Image.Image | None]


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

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters, by a name, that AdamW trains at a rate of their own (`Plan.rates`), undecayed."""
        return {}

    def averaged(self) -> dict[str, nn.Parameter]:
        """The parameters, by their names, that the moving average covers; others stay as trained."""
        return trained(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Length and rates of a run.

    steps: optimizer steps; batch: pictures a micro-batch; accumulate: micro-batches a step and process.
    rate, matrix_rate: peaks of AdamW's and Muon's learning rates; rates: of the task's groups, `rate` where
        none is given. They are warmed up and then lowered along a cosine, or constant all the time.
    eight_bit: bitsandbytes' AdamW with 8-bit moments. clip: largest norm of all gradients together.
    ema_decay: 0 or None: the weights stay as trained. stop_at: end at this step, before the planned length;
        the run can be resumed.
    """

    steps: int
    batch: int
    rate: float
    matrix_rate: float = 2e-2
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    eight_bit: bool = False
    schedule: Schedule = "cosine"
    clip: float = 1.0
    accumulate: int = 1
    ema_decay: float | None = 0.998
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
    on_sample: OnSample | None = None,
) -> None:
    """Train `task` where accelerate says; afterwards it is on the CPU and holds the averaged weights.

    Resumes from `out/checkpoint.pt`: batches and noise are functions of seed, step and micro-batch, so that a
    run that was killed ends as if it had not been, and that the processes of `accelerate launch` or
    `torchrun` train as one does with as many more micro-batches. Appends to `out/log.jsonl`, and to
    `out/tensorboard` where that is installed. `on_sample(step)` is called every `sample_every` steps with the
    averaged weights in place; the picture that it returns goes to TensorBoard. Of several processes the first
    one alone writes, says and samples (see `is_main`).

    Raises InvalidRequest for a plan that does not fit, where the checkpoint is of another architecture, and
    where processes find different ones; SfumatoError where one cannot be written, or where loss or gradients
    are not finite (the last good one stays).
    """
    peaks = _peaks(task, plan)
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=on_cpu(), mixed_precision="bf16")
    model = accelerator.prepare_model(task, evaluation_mode=True)  # no DDP: gradients are averaged below
    parameters = list(trained(task).values())
    optimizers = [accelerator.prepare(optimizer) for optimizer in _optimizers(task, plan)]
    share_weights(parameters)  # before the average begins with them
    ema = Ema(task.averaged(), plan.ema_decay)
    checkpoint = out / "checkpoint.pt"
    first = load_checkpoint(checkpoint, task, ema, optimizers)
    check_same_step(first, checkpoint)
    share_weights(parameters)
    last = min(plan.steps, plan.stop_at or plan.steps)
    pictures = plan.batch * plan.accumulate * accelerator.num_processes
    with closing(Log(out, plan.steps, pictures, say, first)) if is_main() else nullcontext() as log:
        for step in range(first, last):
            _begin_step(optimizers, plan, step)
            figures = _gradients(model, plan, step, accelerator)
            average_gradients(parameters)
            norm = float(accelerator.clip_grad_norm_(parameters, plan.clip))
            if not math.isfinite(figures["loss"]) or not math.isfinite(norm):
                raise _diverged(step, figures["loss"], checkpoint, max(first, step - step % plan.save_every))
            for optimizer in optimizers:
                optimizer.step()
            ema.update()
            if log is None:
                continue
            rates = {name: rate_at(plan.schedule, step, plan.steps, peak) for name, peak in peaks.items()}
            log.add(step, plan.log_every, figures, rates)
            if (step + 1) % plan.save_every == 0 or step + 1 == last:
                save_checkpoint(checkpoint, step + 1, task, ema, optimizers)
            if on_sample and (step + 1) % plan.sample_every == 0:
                with ema.applied():
                    log.picture(step + 1, on_sample(step + 1))
    accelerator.wait_for_everyone()
    ema.apply()
    task.to("cpu")


@contextmanager
def attention(device: torch.device) -> Iterator[None]:
    """On a CPU, attention by plain matrix products.

    Flash attention's backward takes 30 to 40 percent of a step there (PyTorch 2.13, 96 to 256 tokens).
    """
    with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext():
        yield


def _gradients(model: Any, plan: Plan, step: int, accelerator: Accelerator) -> dict[str, float]:
    """Add up the gradients of this process's micro-batches; the means of all processes' figures."""
    sums: dict[str, Tensor] = {}
    for index in range(plan.accumulate):
        micro = index * accelerator.num_processes + accelerator.process_index
        batch = send_to_device(_batch(model, plan, step, micro), accelerator.device)
        with attention(accelerator.device):
            figures = model(*batch)
            accelerator.backward(figures["loss"] / plan.accumulate)
        for name, value in figures.items():
            sums[name] = sums[name] + value.detach() if name in sums else value.detach()
    return mean_figures(sums, plan.accumulate)


def _batch(task: Task, plan: Plan, step: int, micro: int) -> tuple[Any, ...]:
    seeds = np.random.SeedSequence((plan.seed, step, micro))
    generator = torch.Generator().manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    return task.draw(plan.batch, np.random.default_rng(seeds), generator)


def _diverged(step: int, loss: float, checkpoint: Path, saved: int) -> SfumatoError:
    what = "gradients are not finite" if math.isfinite(loss) else f"loss is {loss}"
    if saved:
        return SfumatoError(
            f"step {step + 1}: the {what}; {checkpoint} holds the last good state, after step {saved}: go on "
            "from there with a lower learning rate"
        )
    return SfumatoError(
        f"step {step + 1}: the {what}, and no checkpoint has been saved yet; begin again with a lower "
        "learning rate"
    )


def check_plan(plan: Plan) -> None:
    """Raise InvalidRequest for a plan that no task can follow."""
    not_negative("rate", plan.rate)
    not_negative("matrix rate", plan.matrix_rate)
    for name, rate in plan.rates.items():
        not_negative(f"rate of {name}", rate)
    number("average's decay", plan.ema_decay or 0.0, 0, 1)
    for name in ("steps", "batch", "accumulate", "save_every", "sample_every", "log_every"):
        if getattr(plan, name) < 1:
            raise InvalidRequest(f"{name} {getattr(plan, name)}: must be 1 or more")
    if not plan.clip > 0:
        raise InvalidRequest(f"clip {plan.clip}: must be above 0; 1 is usual")


def _peaks(task: Task, plan: Plan) -> dict[str, float]:
    """Peak learning rates by the names that logs have for them."""
    check_plan(plan)
    groups = task.groups()
    if unknown := sorted(plan.rates.keys() - groups.keys()):
        known = f"it has {', '.join(sorted(groups))}" if groups else "it has none"
        raise InvalidRequest(f"learning rate of {unknown[0]!r}: the task has no such parameters; {known}")
    own = {f"rate/{name}": plan.rates.get(name, plan.rate) for name in groups}
    return {"rate": plan.rate, **({"matrix_rate": plan.matrix_rate} if task.matrices() else {}), **own}


def _optimizers(task: Task, plan: Plan) -> list[torch.optim.Optimizer]:
    matrices = [p for p in task.matrices() if p.requires_grad]
    groups = {name: [p for p in group if p.requires_grad] for name, group in task.groups().items()}
    taken = {id(p) for group in (matrices, *groups.values()) for p in group}
    rest = [p for p in task.parameters() if p.requires_grad and id(p) not in taken]
    decayed = {"params": rest, "lr": plan.rate, "weight_decay": plan.weight_decay}
    own = [
        {"params": group, "lr": plan.rates.get(name, plan.rate), "weight_decay": 0.0}
        for name, group in groups.items()
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=plan.matrix_rate, weight_decay=plan.weight_decay))
    if kept := [group for group in (decayed, *own) if group["params"]]:
        optimizers.append(adamw(kept, plan.betas, plan.eight_bit))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _begin_step(optimizers: list[Any], plan: Plan, step: int) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(plan.schedule, step, plan.steps, group["initial_lr"])
        optimizer.zero_grad()
