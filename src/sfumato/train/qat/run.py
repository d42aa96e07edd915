"""A quantization-aware training from checkpoint to artifact."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from sfumato.artifact import Artifact
from sfumato.convert.run import convert_checkpoint
from sfumato.errors import InvalidRequest
from sfumato.families import Family
from sfumato.files import atomic_folder, check_new_folder, write_errors
from sfumato.graphs.token_merging import Method, TokenMerging
from sfumato.optimize import OnProgress, OnSample
from sfumato.optimize.layers import find_layers
from sfumato.optimize.ranges import Grid
from sfumato.optimize.recipe import ComponentRecipe, Recipe, load_recipe
from sfumato.optimize.run import IR
from sfumato.optimize.run import run as apply_recipe
from sfumato.runtime.devices import core
from sfumato.runtime.png import save_png
from sfumato.runtime.values import not_negative, number
from sfumato.train import loop
from sfumato.train.distill.source import Source, open_source
from sfumato.train.examples import open_examples
from sfumato.train.processes import device, is_main, one_at_a_time
from sfumato.train.qat.begin import beginning
from sfumato.train.qat.layers import Readers, by_module, denoiser_recipe, find_readers
from sfumato.train.qat.levels import NOISING
from sfumato.train.qat.student import Quantizers, state
from sfumato.train.qat.task import Conditioned, Losses, QatTask, teacher_of
from sfumato.train.settings import SETTINGS, keep_settings, lasting
from sfumato.train.token_merging import merging

SAMPLES = 8
SAMPLE_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, and against what.

    recipe: name or file; its denoiser must have mode int8 or hybrid. samples: noised latents that ranges
    begin with. dropout: share of the captions that are dropped. quantizers_only: weights stay as they are.
    rank: of low-rank adapters that are trained instead of the weights; 0 trains the weights.
    token_merging, merging_method: active in training and in the artifact; None for the recipe's own.
    checkpointing: recompute activations in the backward pass, for less memory.
    """

    recipe: str = "int8"
    losses: Losses = field(default_factory=Losses)
    samples: int = 300
    dropout: float = 0.1
    quantizers_only: bool = False
    rank: int = 0
    token_merging: float | None = None
    merging_method: Method | None = None
    checkpointing: bool = False


def train(
    source: Path,
    data: Path,
    out: Path,
    settings: Settings,
    plan: loop.Plan,
    say: Callable[[str], None] = print,
    on_progress: OnProgress = lambda text, done, total: None,
    on_sample: OnSample = lambda done, total: None,
) -> Artifact | None:
    """Train the diffusers folder `source` on the pictures in `data` into the model folder `out`.

    What a run needs to go on lies in the folder beside it that `run_folder` names; the same call resumes it.
    Returns the artifact; None where the plan stops before its end, and in processes other than the main one.
    on_progress, on_sample: as for `sfumato.optimize`.
    Raises CheckpointError where the source cannot be used, InvalidRequest for settings, data, or a run that
    was begun with other settings, SfumatoError where the loss is no number or the disk is full.
    """
    check_new_folder(out)
    _check(settings)
    loop.check_plan(plan)
    chosen = load_recipe(settings.recipe)
    base = open_source(source)
    recipe = with_merging(chosen, base.family, settings)
    own = denoiser_recipe(recipe, base.family)
    folder = run_folder(out)
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    begun = {"source": str(source), "data": str(data), **asdict(settings), **lasting(plan)}
    begun["recipe"] = recipe.to_toml()
    if (folder / SETTINGS).exists():
        keep_settings(folder, begun)
    examples = open_examples(data, base.pipe.vae, folder, side=base.side, say=say)
    with one_at_a_time(folder):
        keep_settings(folder, begun)
    shown = Conditioned(base, examples, NOISING[base.prediction](base.pipe.scheduler), settings.dropout)
    base.pipe.to(device())
    readers = find_readers(base.family, base.denoiser, own)
    with one_at_a_time(folder):
        if is_main():
            say(f"ranges of {len(readers)} activations from {settings.samples} noised latents")
        grids = beginning(folder, base.denoiser, readers, own.smooth, shown, settings.samples, plan.batch)
    task = make_task(base, shown, readers, grids, own, settings, plan.seed)
    prompts = examples.draw(SAMPLES, np.random.default_rng(plan.seed))[1]
    loop.run(task, plan, folder, say, lambda step: _sample(base, prompts, folder / f"samples-{step}.png"))
    unfinished = plan.stop_at is not None and plan.stop_at < plan.steps
    if unfinished or not is_main():
        return None
    return finish(source, out, recipe, base, task, on_progress, on_sample)


def _check(settings: Settings) -> None:
    """Refuse numbers that cannot be, and options that have no use together."""
    for name, weight in asdict(settings.losses).items():
        not_negative(f"{name} loss", weight)
    number("dropout", settings.dropout, 0, 1)
    if settings.quantizers_only and settings.rank:
        raise InvalidRequest(f"quantizers only and rank {settings.rank}: give one of them")
    if not (settings.losses.data > 0 or settings.losses.taught):
        raise InvalidRequest("data, teacher and feature loss are all 0: there is nothing to learn from")
    if settings.merging_method is not None and settings.token_merging is None:
        raise InvalidRequest(f"merging method {settings.merging_method!r}: give a ratio with it")


def run_folder(out: Path) -> Path:
    """Where a run towards `out` keeps its checkpoint, log and samples."""
    return out.with_name(f"{out.name}.run")


def with_merging(recipe: Recipe, family: Family, settings: Settings) -> Recipe:
    """The recipe with the token merging of the settings, where they have one."""
    if settings.token_merging is None:
        return recipe
    kind = family.component(family.denoiser).kind
    method = settings.merging_method or "match"
    changes = {"token_merging": settings.token_merging, "merging_method": method}
    own = {**recipe.of(family.denoiser, kind, True).document(), **changes}
    components = {**recipe.components, family.denoiser: ComponentRecipe.model_validate(own)}
    return recipe.model_copy(update={"components": components})


def make_task(
    base: Source,
    shown: Conditioned,
    readers: list[Readers],
    grids: list[Grid],
    own: ComponentRecipe,
    settings: Settings,
    seed: int = 0,
) -> QatTask:
    """The checkpoint's denoiser with quantizers, merging and teacher, as its recipe and the settings say."""
    denoiser = base.denoiser
    frozen = settings.quantizers_only or settings.rank > 0
    teacher = None if frozen or not settings.losses.taught else teacher_of(denoiser)
    torch.manual_seed(seed)
    quantizers = Quantizers(denoiser, readers, grids, 0 if settings.quantizers_only else settings.rank)
    merged = merging(denoiser, own.token_merging or 0.0, own.merging_method)

    @contextmanager
    def plain() -> Iterator[None]:
        with quantizers.off(), merged.off():
            yield

    if settings.checkpointing:
        denoiser.enable_gradient_checkpointing()
        denoiser.train()
    return QatTask(denoiser, quantizers, teacher, plain, shown, settings.losses, settings.quantizers_only)


def finish(
    source: Path,
    out: Path,
    recipe: Recipe,
    base: Source,
    task: QatTask,
    on_progress: OnProgress,
    on_sample: OnSample,
) -> Artifact:
    """Convert the checkpoint with the trained denoiser, and apply the recipe with the trained ranges."""
    folder, part = run_folder(out), base.family.denoiser
    weights = folder / part
    if weights.exists():
        shutil.rmtree(weights)
    with atomic_folder(weights) as partial:
        save_file(state(task.denoiser, task.quantizers), partial / "diffusion_pytorch_model.safetensors")
        shutil.copyfile(source / part / "config.json", partial / "config.json")
    floating = folder / "floating"
    if floating.exists():
        shutil.rmtree(floating)
    artifact = convert_checkpoint(
        source,
        floating,
        stored="fp16",
        without_t5=False,
        loras=(),
        few_step=None,
        single={},
        name=source.resolve().name,
        merging=TokenMerging(0.0),
        parts={part: weights},
        on_progress=on_progress,
    )
    names = by_module(find_layers(core().read_model(floating / part / IR)))
    grids: Mapping[str, Grid] = {names[name]: grid for name, grid in task.quantizers.grids().items()}
    made = apply_recipe(artifact, out, recipe, None, None, None, on_progress, on_sample, {part: grids})
    shutil.rmtree(floating)
    return made


def _sample(base: Source, prompts: list[str], file: Path) -> Image.Image:
    """Pictures of the prompts side by side, which are kept in a file too."""
    grid = base.grid(prompts, SAMPLE_STEPS, base.guidance)
    save_png(grid, file)
    return grid
