"""The comparison itself: every model in a process of its own, the same requests to all, in turns."""

import logging
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact import find_model, load_manifest
from ..errors import InvalidRequest
from ..files import atomic_folder, expanded
from ..manifest import Reuse
from ..runtime import values
from ..runtime.reuse import LEAST_STEPS
from .entries import Entry, take_part, unable
from .environment import environment
from .measure import summarise, unique_names
from .records import Measured, Model, Report, Run, Sample, Speed
from .relations import compression, not_comparable, speedup
from .report import write
from .worker import TORCH, Worker

if TYPE_CHECKING:
    from . import OnProgress

PICTURES = "pictures"
SHIPPED_COUNT = 10
"""How many prompts of a set that ships are used unless more are asked for."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What the caller of `sfumato.compare` wants; running: how models are to be loaded.

    ratios, reuses: of token merging, and ways of reuse, to try besides.
    """

    models: Sequence[str | Path]
    out: Path
    reference: str | Path | None
    prompts: str | Path | Sequence[str] | None
    count: int | None
    steps: int | None
    size: tuple[int, int] | None
    guidance: float | None
    seed: int
    running: dict[str, Any]
    ratios: Sequence[float] = ()
    reuses: Sequence[Reuse] = ()


@dataclass(frozen=True)
class Request:
    """What all models are asked for; seed is that of the first picture."""

    prompts: Sequence[str]
    steps: int
    guidance: float
    size: tuple[int, int]
    seed: int


def compare_models(asked: Asked, on_progress: "OnProgress") -> Report:
    """Do what `sfumato.compare` says."""
    entries, first = take_part(asked.models, asked.reference, asked.ratios, asked.reuses)
    left_out = unable(entries, asked.ratios, asked.reuses)
    for note in left_out:
        log.warning(note)
    prompts = read_prompts(asked.prompts, asked.count, entries)
    for each in (*prompts, _command(asked)):
        values.text("prompts and file names", each)
    with atomic_folder(asked.out) as folder:
        with ExitStack() as stack:
            workers = _start(entries, asked.running, stack, on_progress)
            base = workers[first].model
            steps = base.steps if asked.steps is None else asked.steps
            guidance = base.guidance if asked.guidance is None else asked.guidance
            _check_steps(steps, asked.reuses)
            request = Request(prompts, steps, guidance, asked.size or base.size, asked.seed)
            _warm_up(workers, request, base.name, on_progress)
            speeds, samples = _generate(workers, request, folder, on_progress)
            models = [worker.model for worker in workers]
        on_progress("judging", 0, 1)
        measured, notes = _judged(models, speeds, samples, base, folder)
        on_progress("judging", 1, 1)
        report = Report(
            command=_command(asked),
            environment=environment(),
            steps=steps,
            guidance=guidance,
            size=request.size,
            runs=len(prompts),
            reference=base.name,
            models=measured,
            samples=samples,
            notes=(*left_out, *notes),
        )
        write(report, folder)
    return report


def _check_steps(steps: int, reuses: Sequence[Reuse]) -> None:
    """Raise InvalidRequest where so few steps would leave out the reuse that is to be compared."""
    if steps < LEAST_STEPS and any(reuse != "off" for reuse in reuses):
        raise InvalidRequest(
            f"reuse {','.join(reuses)}: {steps} steps are too few; give {LEAST_STEPS}, or leave it out"
        )


def read_prompts(
    prompts: str | Path | Sequence[str] | None, count: int | None, entries: Sequence[Entry]
) -> list[str]:
    """Prompts of a file, a set that ships, or a list: `count` of them, spread evenly."""
    from ..optimize.prompts import SHIPPED, load_prompts, pick, shipped

    if count is not None and count < 1:
        raise InvalidRequest(f"count {count}: give 1 or more")
    if prompts is None:
        prompts = "icons" if _know_icons(entries) else "general"
    if isinstance(prompts, str) and prompts in SHIPPED and not Path(prompts).exists():
        texts, count = shipped(prompts), count or SHIPPED_COUNT
    elif isinstance(prompts, str | Path):
        texts = load_prompts(expanded(prompts))
    else:
        texts = list(prompts)
    if not texts or not all(text.strip() for text in texts):
        empty = next((number for number, each in enumerate(texts, 1) if not each.strip()), None)
        what = "no prompts" if empty is None else f"prompt {empty} is empty"
        raise InvalidRequest(f"{what}: give one or more, none of them empty")
    return pick(texts, min(count or len(texts), len(texts)))


def _start(
    entries: Sequence[Entry], running: dict[str, Any], stack: ExitStack, on_progress: "OnProgress"
) -> list[Worker]:
    workers = []
    for done, entry in enumerate(entries):
        on_progress(f"loading {entry.name}", done, len(entries))
        workers.append(
            stack.enter_context(
                Worker(
                    entry.source,
                    name=entry.name,
                    token_merging=entry.token_merging,
                    reuse=entry.reuse,
                    **running,
                )
            )
        )
    on_progress("loading", len(entries), len(entries))
    return workers


def _warm_up(workers: Sequence[Worker], request: Request, reference: str, on_progress: "OnProgress") -> None:
    """One picture each that does not count. What a model cannot make comes out here."""
    for done, worker in enumerate(workers):
        name = worker.model.name
        on_progress(f"warming up {name}", done, len(workers))
        try:
            _ask(worker, request, 0, None)
        except InvalidRequest as error:
            size, steps = "x".join(map(str, request.size)), request.steps
            raise InvalidRequest(
                f"model {name!r} cannot do what is asked of all ({size}, {steps} steps, those of "
                f"{reference!r} unless given): {error}"
            ) from error
    on_progress("warming up", len(workers), len(workers))


def _generate(
    workers: Sequence[Worker], request: Request, folder: Path, on_progress: "OnProgress"
) -> tuple[list[Speed], tuple[Sample, ...]]:
    """Every prompt with every model. Who goes first changes, so that a machine that slows down is fair."""
    (folder / PICTURES).mkdir()
    files = unique_names([file_name(worker.model.name) for worker in workers])
    runs: list[list[Run]] = [[] for _ in workers]
    samples = []
    total = len(request.prompts) * len(workers)
    for index, prompt in enumerate(request.prompts):
        pictures = {
            worker.model.name: f"{PICTURES}/{index + 1:03}-{file}.png"
            for worker, file in zip(workers, files, strict=True)
        }
        for turn in range(len(workers)):
            on_progress("picture", index * len(workers) + turn, total)
            place = (index + turn) % len(workers)
            out = folder / pictures[workers[place].model.name]
            runs[place].append(_ask(workers[place], request, index, out))
        samples.append(Sample(prompt=prompt, seed=request.seed + index, pictures=pictures))
    on_progress("picture", total, total)
    speeds = [summarise(worker, each) for worker, each in zip(workers, runs, strict=True)]
    return speeds, tuple(samples)


def _ask(worker: Worker, request: Request, index: int, out: Path | None) -> Run:
    return worker.generate(
        request.prompts[index],
        seed=request.seed + index,
        steps=request.steps,
        guidance=request.guidance,
        size=request.size,
        out=out,
    )


def _judged(
    models: Sequence[Model],
    speeds: Sequence[Speed],
    samples: Sequence[Sample],
    base: Model,
    folder: Path,
) -> tuple[tuple[Measured, ...], list[str]]:
    from .judge import judge

    others = [model for model in models if model.name != base.name]
    reasons = {model.name: reason for model in others if (reason := not_comparable(model, base))}
    comparable = [model.name for model in others if model.name not in reasons]
    files = {model.name: [folder / sample.pictures[model.name] for sample in samples] for model in models}
    judged = judge(files, [sample.prompt for sample in samples], base.name, comparable)
    baseline = speeds[[model.name for model in models].index(base.name)]
    measured = tuple(
        Measured(
            model=model,
            speed=speed,
            compression={} if model is base else compression(model, base),
            speedup={} if model is base else speedup(speed, baseline),
            fidelity=judged.fidelity.get(model.name),
            recall=judged.recall.get(model.name),
        )
        for model, speed in zip(models, speeds, strict=True)
    )
    return measured, [*reasons.values(), *judged.notes]


def file_name(name: str) -> str:
    """A model's name as part of a file's name on any system."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name.lower())
    return "-".join(part for part in plain.split("-") if part)[:48] or "model"


def _know_icons(entries: Sequence[Entry]) -> bool:
    """Whether the models that can tell read short prompts only, as those do that were trained on icons."""
    manifests = [
        load_manifest(find_model(entry.source)) for entry in entries if not entry.source.startswith(TORCH)
    ]
    tokens = [info.max_tokens for each in manifests for info in each.components.values() if info.max_tokens]
    return bool(tokens) and max(tokens) < 77  # CLIP's own length


def _command(asked: Asked) -> str:
    """The command that makes this report; prompts from Python stand as FILE."""
    defaults = {"device": "CPU", "threads": None, "precision": None, "memory": "auto"}
    defaults |= {"merging_method": "match"}
    listed = asked.prompts is not None and not isinstance(asked.prompts, str | Path)
    options = {
        "reference": asked.reference,
        "prompts": "FILE" if listed else asked.prompts,
        "count": asked.count,
        "steps": asked.steps,
        "size": asked.size and "x".join(map(str, asked.size)),
        "guidance": asked.guidance,
        "seed": asked.seed or None,
        "token-merging": ",".join(f"{ratio:g}" for ratio in asked.ratios) or None,
        "reuse": ",".join(asked.reuses) or None,
        **{name: value for name, value in asked.running.items() if value != defaults[name]},
    }
    words = ["sfumato", "compare", *map(str, asked.models)]
    for name, value in options.items():
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "-o", str(asked.out)])
