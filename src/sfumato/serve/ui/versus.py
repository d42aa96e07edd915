"""The tab that holds two models side by side: one prompt, one seed, and a slider between the pictures."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL.Image import Image

from ...artifact import Artifact, load_manifest
from ...compare.fidelity import SSIM_SIDE, psnr, ssim
from ...errors import Cancelled
from ...files import human_bytes
from ...graphs.token_merging import LARGEST_RATIO
from ...runtime.parameters import settings
from ...runtime.png import read_parameters
from ..engine import Finished, Stepped, Work
from .errors import toasts
from .fields import Updates, Values, prompt_of, whole
from .previews import ShownPair, inlined
from .studio import QUIET, Models, Studio, buttons, pace, progress_of, status, table, what_went_wrong

HEAD = ("", "model", "on disk", "merging", "a step", "all", "peak signal to noise")


@dataclass(frozen=True)
class Side:
    """One of the two: which model, and how much it merges."""

    model: gr.Dropdown
    merging: gr.Slider


@dataclass(frozen=True)
class VersusTab:
    """The tab's components; `versus_tab` puts them on the page and wires them."""

    studio: Studio
    sides: tuple[Side, Side]
    prompt: gr.Textbox
    negative: gr.Textbox
    seed: gr.Number
    steps: gr.Number
    guidance: gr.Number
    width: gr.Number
    height: gr.Number
    go: gr.Button
    stop: gr.Button
    status: gr.HTML
    slider: ShownPair
    measured: gr.HTML

    def form(self) -> list[Any]:
        """Everything that can be filled in."""
        sides = [each for side in self.sides for each in (side.model, side.merging)]
        text = [self.prompt, self.negative]
        return [*sides, *text, self.seed, self.steps, self.guidance, self.width, self.height]

    def refreshed(self, models: Models, first: str | None, second: str | None) -> Updates:
        """The lists of models as they are now."""
        choices, names = self.studio.choices(models), list(models)
        updates: Updates = {}
        for index, (side, name) in enumerate(zip(self.sides, (first, second), strict=True)):
            default = names[min(index, len(names) - 1)] if names else None
            kept = name if name in names else default
            updates[side.model] = gr.update(choices=choices, value=kept)
            if index == 0 and kept not in (name, None):
                updates |= self._settings(models[kept])
        return updates

    def of_model(self) -> list[Any]:
        """What the settings of model A are put into."""
        return [self.steps, self.guidance, self.width, self.height]

    def switched(self, name: str) -> Updates:
        """The settings of model A when it is chosen."""
        with toasts():
            return self._settings(self.studio.catalog.find(name))

    def _settings(self, artifact: Artifact) -> Updates:
        manifest = artifact.manifest
        width, height = manifest.latents.default_size
        sampling = manifest.sampling
        updates: Updates = {self.steps: sampling.steps, self.guidance: sampling.guidance}
        return updates | {self.width: width, self.height: height}

    def repeated(self, path: str) -> Updates:
        """Prompt and settings of a picture that was made here."""
        carried = read_parameters(Path(path))
        found = settings(carried)
        updates: Updates = {self.prompt: carried.prompt, self.negative: carried.negative_prompt or ""}
        updates |= {
            getattr(self, name): found[name] for name in ("seed", "steps", "guidance") if name in found
        }
        if "size" in found:
            updates |= {self.width: found["size"][0], self.height: found["size"][1]}
        if (name := carried.settings.get("Model")) in self.studio.catalog.models():
            updates[self.sides[0].model] = name
        return updates

    def compare(self, values: Values, request: gr.Request) -> Iterator[Updates]:
        """Make both pictures, one after the other."""
        ended = buttons(self.go, self.stop, running=False)
        yield buttons(self.go, self.stop, running=True) | {
            self.status: status("beginning", 0.0),
            self.slider: None,
            self.measured: "",
        }
        pictures: list[Image] = []
        rows: list[list[str]] = []
        try:
            works = [self.work(values, side) for side in self.sides]
            for letter, side, work in zip("AB", self.sides, works, strict=True):
                began = time.perf_counter()
                for event in self.studio.run(request, work):
                    if (said := progress_of(event)) is not None:
                        text, share = said
                        yield {self.status: status(f"{letter}: {text}", share)} | self._preview(
                            event, pictures
                        )
                    if isinstance(event, Finished):
                        pictures.append(event.result.images[0])
                        seconds = time.perf_counter() - began
                        rows.append(self._row([letter, values[side.model]], work, event, seconds))
            rows[1][-1] = likeness(*pictures)
            yield ended | {
                self.status: status(f"seed {works[0].given['seed']}: A is on the left, B on the right"),
                self.slider: tuple(pictures),
                self.measured: f'<div class="measured">{table(rows, HEAD)}</div>',
            }
        except Cancelled:
            yield ended | {self.status: status("stopped"), self.slider: None}
        except Exception as error:
            yield ended | {self.status: what_went_wrong(error), self.slider: None}

    def work(self, values: Values, side: Side) -> Work:
        """One side's work; both have the same seed and settings. Raises InvalidRequest."""
        artifact = self.studio.catalog.find(values[side.model])
        given = {
            "seed": whole("seed", values[self.seed]),
            "steps": whole("steps", values[self.steps]),
            "guidance": values[self.guidance],
            "size": (whole("width", values[self.width]), whole("height", values[self.height])),
            "negative_prompt": prompt_of(values[self.negative]) or None,
        }
        return Work(
            model=str(artifact.path),
            prompt=prompt_of(values[self.prompt]),
            given=given,
            token_merging=values[side.merging],
        )

    def _preview(self, event: Any, pictures: list[Image]) -> Updates:
        preview = event.step.preview() if isinstance(event, Stepped) else None
        if preview is None:
            return {}
        shown = inlined(preview)
        return {self.slider: (inlined(pictures[0]) if pictures else shown, shown)}

    def _row(self, which: list[str], work: Work, event: Finished, seconds: float) -> list[str]:
        size = human_bytes(load_manifest(Path(work.model)).bytes)
        merging = f"{work.token_merging:.0%}" if work.token_merging else "none"
        times = [pace(event.step_seconds), f"{seconds:.2f} s"]
        return [*which, size, merging, *times, ""]


def likeness(first: Image, second: Image) -> str:
    """How near the second picture is to the first one."""
    if first.size != second.size:
        return f"of another size, {second.width}x{second.height}"
    a, b = np.asarray(first), np.asarray(second)
    decibels = psnr(a, b)
    if decibels == float("inf"):
        return "the same to the bit"
    similar = f", SSIM {ssim(a, b):.3f}" if min(first.size) >= SSIM_SIDE else ""
    return f"{decibels:.1f} dB{similar}"


def versus_tab(studio: Studio) -> VersusTab:
    """Put the tab's components into the block that is open."""
    with gr.Row():
        sides = []
        for letter in "AB":
            with gr.Column(min_width=280):
                model = gr.Dropdown(label=f"Model {letter}", choices=[], elem_id=f"model-{letter.lower()}")
                merging = gr.Slider(0, LARGEST_RATIO, 0, step=0.05, label="Token merging")
                sides.append(Side(model, merging))
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            prompt = gr.Textbox(label="Prompt", lines=2, elem_id="versus-prompt")
            negative = gr.Textbox(label="Negative prompt", lines=1)
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, min_width=80)
                steps = gr.Number(20, label="Steps", precision=0, min_width=80)
                guidance = gr.Number(4, label="Guidance", min_width=80)
            with gr.Row():
                width = gr.Number(128, label="Width", precision=0, min_width=80)
                height = gr.Number(128, label="Height", precision=0, min_width=80)
            with gr.Row():
                go = gr.Button("Compare", variant="primary", elem_id="versus-go")
                stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="versus-stop")
            line = gr.HTML(status("ready"), elem_id="versus-status")
        with gr.Column(scale=6, min_width=320):
            slider = ShownPair(
                label="A and B", format="png", elem_id="slider", max_height=620, buttons=["fullscreen"]
            )
            measured = gr.HTML(elem_id="measured")
    tab = VersusTab(
        studio, (sides[0], sides[1]), prompt, negative, seed, steps, guidance, width, height, go, stop, line,
        slider, measured,
    )  # fmt: skip
    outputs = [tab.go, tab.stop, tab.status, tab.slider, tab.measured]
    compared = gr.on(
        [go.click, prompt.submit], tab.compare, set(tab.form()), outputs, concurrency_limit=None, **QUIET
    )
    compared.failure(lambda: buttons(go, stop, running=False), None, [go, stop], queue=False, **QUIET)
    sides[0].model.input(tab.switched, sides[0].model, tab.of_model(), **QUIET)
    stop.click(studio.stop, queue=False, **QUIET)
    return tab
