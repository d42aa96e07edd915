"""The tab that converts checkpoints and optimizes models, and shows how far that is."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ...graphs.token_merging import LARGEST_RATIO
from ...optimize.recipe import Recipe, builtin, load_recipe
from ..jobs import Job, Jobs
from .errors import toasts
from .fields import Updates, whole
from .jobs_html import CSS, RECIPE_CSS, described, overview
from .studio import QUIET

Models = Callable[[], Sequence[str | tuple[str, str]]]
PRECISIONS = [
    ("16 bits", "fp16"),
    ("32 bits", "fp32"),
    ("8-bit weights", "int8"),
    ("4-bit weights", "int4"),
    ("4-bit normal floats", "nf4"),
]


@dataclass(frozen=True)
class _Shown:
    """What a browser has of the jobs, so that it is sent only what changed."""

    overview: str = ""
    choices: tuple[tuple[str, int], ...] = ()
    chosen: int | None = None
    log: str = ""
    stoppable: bool = False


class _Right:
    """The list of jobs, and one job's log. picked: the job that a person chose, None for the newest."""

    def __init__(self, jobs: Jobs) -> None:
        self.picked = gr.State()
        self.shown = gr.State(_Shown())
        self.overview = gr.HTML(overview([]), css_template=CSS, elem_id="jobs")
        self.choice = gr.Dropdown([], label="Job", interactive=True, filterable=False, elem_id="job")
        self.log = gr.Textbox(
            label="Log", lines=12, max_lines=12, autoscroll=True, interactive=False, elem_id="job-log"
        )
        self.stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="job-stop")
        self._jobs = jobs

    def refreshed(self, picked: int | None, shown: _Shown) -> Updates:
        """What changed since `shown`."""
        jobs = self._jobs.all()
        job = next((job for job in jobs if job.id == picked), jobs[-1] if jobs else None)
        now = _Shown(
            overview(jobs),
            tuple((f"{job.id}: {job.title}", job.id) for job in reversed(jobs)),
            None if job is None else job.id,
            "" if job is None else "\n".join(job.log),
            job is not None and not job.ended,
        )
        updates: Updates = {self.shown: now}
        if now.overview != shown.overview:
            updates[self.overview] = now.overview
        if (now.choices, now.chosen) != (shown.choices, shown.chosen):
            updates[self.choice] = gr.update(choices=list(now.choices), value=now.chosen)
        if now.log != shown.log:
            updates[self.log] = now.log
        if now.stoppable != shown.stoppable:
            updates[self.stop] = gr.update(interactive=now.stoppable)
        return updates

    def outputs(self) -> list[Any]:
        return [self.picked, self.shown, self.overview, self.choice, self.log, self.stop]


def jobs_tab(jobs: Jobs, models: Models) -> None:
    """Put the tab's components into the block that is open.

    models: what can be optimized, each a name, or a name and the model's folder; asked for again whenever a
    job is done.
    """
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            with gr.Accordion("Convert a checkpoint", elem_id="convert"):
                convert, convert_fields = _convert_form()
            with gr.Accordion("Optimize a model", elem_id="optimize"):
                optimize, model, optimize_fields = _optimize_form(models)
        with gr.Column(scale=5, min_width=320):
            right = _Right(jobs)
    made = gr.State()  # the jobs whose models the list of models has
    followed = [right.picked, right.shown]

    def started(job: Job, shown: _Shown) -> Updates:
        gr.Info(f"job {job.id}: {escape(job.title)}", duration=4)
        return {right.picked: job.id} | right.refreshed(job.id, shown)

    def on_convert(shown: _Shown, *given: Any) -> Updates:
        with toasts():
            return started(start_conversion(jobs, *given), shown)

    def on_optimize(shown: _Shown, *given: Any) -> Updates:
        with toasts():
            return started(start_optimization(jobs, *given), shown)

    def on_stop(picked: int | None, shown: _Shown) -> Updates:
        with toasts():
            if shown.chosen is not None:
                jobs.stop(shown.chosen)
            return right.refreshed(picked, shown)

    def on_tick(picked: int | None, shown: _Shown, offered: frozenset[int] | None) -> Updates:
        updates = right.refreshed(picked, shown)
        done = frozenset(job.id for job in jobs.all() if job.state == "done")
        if done != offered:
            updates |= {made: done, model: gr.update(choices=list(models()))}
        return updates

    convert.click(on_convert, [right.shown, *convert_fields], right.outputs(), **QUIET)
    optimize.click(on_optimize, [right.shown, *optimize_fields], right.outputs(), **QUIET)
    right.stop.click(on_stop, followed, right.outputs(), **QUIET)
    right.choice.input(
        lambda id, shown: {right.picked: id} | right.refreshed(id, shown),
        [right.choice, right.shown],
        right.outputs(),
        **QUIET,
    )
    gr.Timer(1).tick(on_tick, [*followed, made], [*right.outputs(), made, model], **QUIET)


def _convert_form() -> tuple[gr.Button, list[Any]]:
    source = gr.Textbox(
        label="Checkpoint",
        info="a folder in diffusers' layout, a .safetensors file, or a model on the Hub",
        placeholder="./stable-diffusion-v1-5 or org/name",
        max_lines=1,
        elem_id="source",
    )
    name = gr.Textbox(
        label="Name of the model",
        placeholder="left empty: the checkpoint's",
        max_lines=1,
        elem_id="convert-name",
    )
    precision = gr.Dropdown(PRECISIONS, value="fp16", label="Stored as", elem_id="precision")
    with gr.Accordion("LoRA, token merging, T5", open=False):
        with gr.Row():
            lora = gr.Textbox(
                label="LoRA", placeholder="a .safetensors file", max_lines=1, scale=2, elem_id="lora"
            )
            scale = gr.Number(1.0, label="Strength", step=0.1, scale=1, min_width=90)
        merging = gr.Slider(
            0,
            LARGEST_RATIO,
            0,
            step=0.05,
            label="Token merging",
            info="share of the tokens that attention does without: faster, with less detail",
        )
        without_t5 = gr.Checkbox(False, label="Leave the T5 text encoder out (SD3)")
    button = gr.Button("Convert", variant="primary", elem_id="start-convert")
    return button, [source, name, precision, lora, scale, merging, without_t5]


def start_conversion(
    jobs: Jobs,
    source: str,
    name: str,
    precision: Any,
    lora: str | None,
    scale: float,
    merging: float,
    without_t5: bool,
) -> Job:
    """Start what the form says. Raises InvalidRequest."""
    loras = [(lora, scale)] if lora and lora.strip() else []
    return jobs.convert(
        source,
        name.strip() or model_name(source),
        precision=precision,
        loras=loras,
        without_t5=bool(without_t5),
        token_merging=merging or None,
    )


def _optimize_form(models: Models) -> tuple[gr.Button, gr.Dropdown, list[Any]]:
    recipes = builtin()
    choices = list(models())
    first = choices[0] if choices else None
    chosen = first[1] if isinstance(first, tuple) else first
    model = gr.Dropdown(choices, value=chosen, label="Model", elem_id="optimize-model")
    recipe = gr.Dropdown(list(recipes), value="int8", label="Recipe", elem_id="recipe")
    about = gr.HTML(described(recipes["int8"]), css_template=RECIPE_CSS)
    name = gr.Textbox(
        label="Name of the new model", value=_default(chosen, "int8"), max_lines=1, elem_id="optimize-name"
    )
    samples = gr.Number(
        recipes["int8"].calibration.samples,
        label="Samples",
        info="runs of the denoiser to learn from",
        precision=0,
        elem_id="samples",
    )
    button = gr.Button("Optimize", variant="primary", elem_id="start-optimize")

    def on_recipe(model: str | None, recipe: str) -> Updates:
        return {
            about: described(recipes[recipe]),
            name: _default(model, recipe),
            samples: gr.update(
                visible=takes_samples(recipes[recipe]), value=recipes[recipe].calibration.samples
            ),
        }

    model.input(_default, [model, recipe], name, **QUIET)
    recipe.input(on_recipe, [model, recipe], [about, name, samples], **QUIET)
    return button, model, [model, name, recipe, samples]


def start_optimization(jobs: Jobs, model: str | None, name: str, recipe: str, samples: float | None) -> Job:
    """Start what the form says. Raises InvalidRequest."""
    count = whole("samples", samples) if takes_samples(load_recipe(recipe)) else None
    return jobs.optimize(model or "", name.strip(), recipe, samples=count)


def model_name(source: str) -> str:
    """A name for what is made of a source: the end of its path, in letters that names have."""
    last = Path(source.strip()).name.removesuffix(".safetensors").split("@")[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("._-")[:64]


def _default(model: str | None, recipe: str) -> str:
    return f"{model_name(model)[: 63 - len(recipe)]}-{recipe}" if model else ""


def takes_samples(recipe: Recipe) -> bool:
    """Whether any part of it has to see the model at work."""
    return any(each.needs_samples for each in recipe.components.values())
