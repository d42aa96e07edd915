"""The tab that makes pictures: of words, of a picture, of a part of one."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ...errors import Cancelled, InvalidRequest
from ...optimize.prompts import pick, shipped
from ...runtime.png import read_parameters
from ..catalog import is_refiner
from ..engine import Finished, Made, Stepped, Work
from .fields import Fields, Updates, Values, fields, prompt_of
from .studio import Studio, facts, progress_of, status, what_went_wrong
from .uploads import MaskEditor, Picture, mask_input, picture_input

TEXT, PICTURE, INPAINT = "from words", "from a picture", "inpaint"
NO_REFINER = "none"
SHOWN = 512
"""Sides, at most, of the preview."""
READY = status("ready")


@dataclass(frozen=True)
class CreateTab:
    """The tab's components; `create_tab` puts them on the page and wires them."""

    studio: Studio
    owner: gr.BrowserState
    model: gr.Dropdown
    facts: gr.HTML
    prompt: gr.Textbox
    negative: gr.Textbox
    examples: gr.Dataset
    mode: gr.Radio
    picture: Picture
    mask: MaskEditor
    strength: gr.Slider
    refiner: gr.Dropdown
    switch_at: gr.Slider
    fields: Fields
    go: gr.Button
    stop: gr.Button
    status: gr.HTML
    now: gr.Image
    made: gr.Gallery
    chosen: gr.State

    def inputs(self) -> set[Any]:
        own = {self.owner, self.model, self.prompt, self.negative, self.mode, self.picture, self.mask}
        return own | {self.strength, self.refiner, self.switch_at} | self.fields.all()

    def outputs(self) -> list[Any]:
        return [self.go, self.stop, self.status, self.now, self.made, self.chosen, self.fields.seed]

    def switched(self, name: str) -> Updates:
        """The settings of a model that was chosen."""
        try:
            artifact = self.studio.catalog.find(name)
        except InvalidRequest as error:
            return {self.facts: what_went_wrong(error)}
        captions = pick(shipped(artifact.manifest.captions), 6)
        seconds = self.studio.engine.step_seconds(str(artifact.path))
        return self.fields.of_model(artifact) | {
            self.facts: facts(artifact, seconds),
            self.examples: gr.update(samples=[[caption] for caption in captions]),
            self.mode: PICTURE if is_refiner(artifact) else gr.skip(),
        }

    def refreshed(self, name: str | None, refiner: str | None) -> Updates:
        """The lists of models as they are now."""
        choices = self.studio.choices()
        names = [each for _, each in choices]
        kept = name if name in names else next(iter(names), None)
        refiners = [NO_REFINER, *(each for each in choices if self._refines(each[1]))]
        return {
            self.model: gr.update(choices=choices, value=kept),
            self.refiner: gr.update(choices=refiners, value=refiner if refiner in names else NO_REFINER),
        }

    def generate(self, values: Values, request: gr.Request) -> Iterator[Updates]:
        """Make the pictures, and show how they come to be."""
        idle = {self.go: gr.update(interactive=True), self.stop: gr.update(interactive=False)}
        yield {
            self.go: gr.update(interactive=False),
            self.stop: gr.update(interactive=True),
            self.status: status("beginning", 0.0),
            self.made: gr.update(value=[], visible=False),
        }
        began = time.perf_counter()
        paths: list[str] = []
        try:
            work = self.work(values)
            for event in self.studio.run(request, work):
                match event:
                    case Made():
                        continue
                    case Finished():
                        seconds = time.perf_counter() - began
                        yield idle | self._finished(event, work, str(values[self.owner]), seconds, paths)
                    case _:
                        yield self._going_on(event)
        except Cancelled:
            yield idle | {self.status: status("stopped; nothing was kept"), self.now: None}
        except Exception as error:
            yield idle | {self.status: what_went_wrong(error)}

    def work(self, values: Values) -> Work:
        """What the form asks for. Raises InvalidRequest for what makes no sense."""
        artifact = self.studio.catalog.find(values[self.model])
        refiner = values[self.refiner]
        given = self.fields.given(values) | {"negative_prompt": prompt_of(values[self.negative]) or None}
        match values[self.mode]:
            case "from a picture":
                given |= {"image": _needed(values[self.picture]), "strength": values[self.strength]}
            case "inpaint":
                given |= _painted(values[self.mask]) | {"strength": values[self.strength]}
        refines = refiner not in (None, NO_REFINER)
        if refines:
            given["switch_at"] = values[self.switch_at]
        return Work(
            model=str(artifact.path),
            prompt=prompt_of(values[self.prompt]),
            given=given,
            refiner=str(self.studio.catalog.find(refiner).path) if refines else None,
            token_merging=values[self.fields.merging],
        )

    def repeated(self, path: str | None) -> Updates:
        """Prompt and settings of a picture that was made here."""
        carried = read_parameters(Path(_needed(path)))
        updates = self.fields.of_parameters(carried)
        name = carried.settings.get("Model")
        if name in self.studio.catalog.models():
            updates[self.model] = name
        return updates | {self.prompt: carried.prompt, self.negative: carried.negative_prompt or ""}

    def _refines(self, name: str) -> bool:
        model = self.studio.catalog.models().get(name)
        return model is not None and model.manifest.family == "sdxl"

    def _going_on(self, event: Any) -> Updates:
        said = progress_of(event)
        updates: Updates = {} if said is None else {self.status: status(*said)}
        if isinstance(event, Stepped) and (preview := event.step.preview()) is not None:
            updates[self.now] = enlarged(preview)
        return updates

    def _finished(self, event: Finished, work: Work, owner: str, seconds: float, paths: list[str]) -> Updates:
        result = event.result
        owner = self.studio.album.owner(owner)
        for index, (image, seed) in enumerate(zip(result.images, result.seeds, strict=True)):
            path = self.studio.album.add(owner, image, seed, result.parameters(index))
            paths.append(str(path))
        seeds = f"seed {result.seeds[0]}" + (f" to {result.seeds[-1]}" if len(paths) > 1 else "")
        pace = f", {event.step_seconds:.3g} s a step" if event.step_seconds == event.step_seconds else ""
        return {
            self.status: status(f"{seeds}, {seconds:.1f} s{pace}"),
            self.now: paths[0],
            self.made: gr.update(value=paths, visible=len(paths) > 1),
            self.chosen: paths[0],
            self.fields.seed: result.seeds[0],
        }


def create_tab(studio: Studio, owner: gr.BrowserState, chosen: gr.State) -> CreateTab:
    """Put the tab's components into the block that is open; chosen: the picture that was last looked at."""
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            prompt = gr.Textbox(label="Prompt", lines=3, max_lines=8, elem_id="prompt", autofocus=True)
            negative = gr.Textbox(label="Negative prompt", lines=1, max_lines=4, elem_id="negative")
            with gr.Row():
                go = gr.Button("Generate", variant="primary", elem_id="go")
                stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop")
            examples = gr.Dataset(components=[prompt], samples=[[""]], label="Examples", elem_id="examples")
            model = gr.Dropdown(label="Model", choices=[], elem_id="model")
            with gr.Accordion("About this model", open=False):
                about = gr.HTML()
            mode = gr.Radio([TEXT, PICTURE, INPAINT], value=TEXT, label="Begin", elem_id="mode")
            picture = picture_input(label="Picture", visible=False, elem_id="picture", height=300)
            mask = mask_input(
                label="Paint what is to be drawn anew", visible=False, elem_id="mask", height=420
            )
            strength = gr.Slider(0, 1, 0.6, step=0.05, label="Strength", visible=False, elem_id="strength")
            form = fields()
            with gr.Accordion("Two stages", open=False):
                refiner = gr.Dropdown([NO_REFINER], value=NO_REFINER, label="Refiner", elem_id="refiner")
                switch_at = gr.Slider(0, 1, 0.8, step=0.05, label="It takes over at")
        with gr.Column(scale=6, min_width=320, elem_id="result"):
            line = gr.HTML(READY, elem_id="status")
            now = gr.Image(
                show_label=False,
                interactive=False,
                format="png",
                height=520,
                elem_id="now",
                type="filepath",
                buttons=["download", "fullscreen"],
            )
            made = gr.Gallery(
                show_label=False, columns=4, height=220, visible=False, elem_id="made", buttons=[]
            )
    tab = CreateTab(
        studio, owner, model, about, prompt, negative, examples, mode, picture, mask, strength, refiner,
        switch_at, form, go, stop, line, now, made, chosen,
    )  # fmt: skip
    _wire(tab)
    return tab


def _wire(tab: CreateTab) -> None:
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on(
        [tab.go.click, tab.prompt.submit],
        tab.generate,
        tab.inputs(),
        tab.outputs(),
        concurrency_limit=None,
        **quiet,
    )
    tab.stop.click(tab.studio.stop, queue=False, **quiet)
    tab.model.change(tab.switched, tab.model, [tab.facts, tab.examples, tab.mode, *tab.fields.all()], **quiet)
    tab.mode.change(
        lambda mode: (
            gr.update(visible=mode == PICTURE),
            gr.update(visible=mode == INPAINT),
            gr.update(visible=mode != TEXT, value=1.0 if mode == INPAINT else 0.6),
        ),
        tab.mode,
        [tab.picture, tab.mask, tab.strength],
        **quiet,
    )
    tab.examples.click(lambda row: row[0], tab.examples, tab.prompt, **quiet)
    tab.made.select(_pointed_at, tab.made, [tab.chosen, tab.now], **quiet)


def _pointed_at(shown: Any, event: gr.SelectData) -> tuple[str, str]:
    path = str(shown[event.index][0])
    return path, path


def enlarged(preview: Image.Image) -> Image.Image:
    """A preview large enough to be looked at."""
    factor = SHOWN / max(preview.size)
    width, height = (max(1, round(side * factor)) for side in preview.size)
    return preview.resize((width, height), Image.Resampling.BICUBIC)


def _needed(path: object) -> str:
    if not isinstance(path, str):
        raise InvalidRequest("there is no picture to begin from; upload one, or send one here")
    return path


def _painted(value: Any) -> dict[str, Any]:
    """Picture and mask of what the editor holds."""
    background = None if value is None else value["background"]
    if background is None:
        raise InvalidRequest("there is no picture to repaint; upload one, or send one here")
    layers = [layer for layer in value["layers"] if layer is not None]
    mask = Image.new("L", background.size)
    for layer in layers:
        painted = (
            layer.convert("RGBA")
            .getchannel("A")
            .resize(background.size)
            .point(lambda alpha: 255 * (alpha > 0))
        )
        mask.paste(255, mask=painted)
    if mask.getbbox() is None:
        raise InvalidRequest("nothing is painted: paint over what is to be drawn anew")
    return {"image": background.convert("RGB"), "mask": mask}
