"""The tab that makes pictures: of words, of a picture, of a part of one."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ...artifact import Artifact
from ...errors import Cancelled, InvalidRequest
from ...optimize.prompts import pick, shipped
from ...runtime.build import STRENGTH
from ...runtime.parameters import settings
from ...runtime.png import read_parameters
from ..catalog import is_refiner
from ..engine import Finished, Made, Stepped, Work
from .fields import Fields, Updates, Values, fields, merged, prompt_of
from .previews import Shown, inlined
from .studio import QUIET, Models, Studio, buttons, facts, pace, progress_of, status, what_went_wrong
from .uploads import MaskEditor, Picture, mask_input, picture_input

TEXT, PICTURE, INPAINT = "from words", "from a picture", "inpaint"
NO_REFINER = "none"
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
    now: Shown
    made: gr.Gallery
    paths: gr.State

    def inputs(self) -> set[Any]:
        own = {self.owner, self.model, self.prompt, self.negative, self.mode, self.picture, self.mask}
        return own | {self.strength, self.refiner, self.switch_at} | self.fields.all()

    def outputs(self) -> list[Any]:
        return [self.go, self.stop, self.status, self.now, self.made, self.paths, self.fields.seed]

    def of_model(self) -> list[Any]:
        """What a model's own settings are put into."""
        return [self.facts, self.examples, self.mode, *self.fields.all()]

    def repeats(self) -> list[Any]:
        """What a picture's prompt and settings are put into."""
        return [self.model, self.prompt, self.negative, self.refiner, self.switch_at, *self.of_model()]

    def switched(self, name: str) -> Updates:
        """The settings of a model that was chosen."""
        try:
            return self._settings(self.studio.catalog.find(name))
        except InvalidRequest as error:
            return {self.facts: what_went_wrong(error)}

    def refreshed(self, models: Models, name: str | None, refiner: str | None) -> Updates:
        """The lists of models as they are now, with the first one's settings where the chosen one is gone."""
        choices = self.studio.choices(models)
        kept = name if name in models else next(iter(models), None)
        refines = {each for each, artifact in models.items() if artifact.manifest.family == "sdxl"}
        refiners = [NO_REFINER, *(choice for choice in choices if choice[1] in refines)]
        updates: Updates = {
            self.model: gr.update(choices=choices, value=kept),
            self.refiner: gr.update(choices=refiners, value=refiner if refiner in refines else NO_REFINER),
        }
        return updates if kept in (name, None) else updates | self._settings(models[kept])

    def generate(self, values: Values, request: gr.Request) -> Iterator[Updates]:
        """Make the pictures, and show how they come to be."""
        ended = buttons(self.go, self.stop, running=False)
        yield buttons(self.go, self.stop, running=True) | {
            self.status: status("beginning", 0.0),
            self.made: gr.update(value=[], visible=False),
        }
        began = time.perf_counter()
        try:
            work = self.work(values)
            for event in self.studio.run(request, work):
                match event:
                    case Made():
                        continue
                    case Finished():
                        yield ended | self._finished(event, values[self.owner], time.perf_counter() - began)
                    case _:
                        yield self._going_on(event)
        except Cancelled:
            yield ended | {self.status: status("stopped; nothing was kept"), self.now: None}
        except Exception as error:
            yield ended | {self.status: what_went_wrong(error), self.now: None}

    def work(self, values: Values) -> Work:
        """What the form asks for. Raises InvalidRequest for what makes no sense."""
        artifact = self.studio.catalog.find(values[self.model])
        refiner = values[self.refiner]
        given = self.fields.given(values) | {"negative_prompt": prompt_of(values[self.negative]) or None}
        if values[self.mode] == PICTURE:
            given |= {"image": _needed(values[self.picture]), "strength": values[self.strength]}
        elif values[self.mode] == INPAINT:
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

    def repeated(self, path: str) -> Updates:
        """Prompt and settings of a picture that was made here; the models are those that it was made with."""
        carried = read_parameters(Path(path))
        models = self.studio.catalog.models()
        name, refiner = (carried.settings.get(key) for key in ("Model", "Refiner"))
        known: Updates = {} if name not in models else {self.model: name} | self._settings(models[name])
        switch_at = settings(carried).get("switch_at")
        return merged(known, self.fields.of_parameters(carried)) | {
            self.prompt: carried.prompt,
            self.negative: carried.negative_prompt or "",
            self.mode: TEXT,
            self.refiner: refiner if refiner in models else NO_REFINER,
            self.switch_at: gr.skip() if switch_at is None else switch_at,
        }

    def _settings(self, artifact: Artifact) -> Updates:
        captions = pick(shipped(artifact.manifest.captions), 6)
        seconds = self.studio.engine.step_seconds(artifact.path)
        return self.fields.of_model(artifact) | {
            self.facts: facts(artifact, seconds),
            self.examples: gr.update(samples=[[caption] for caption in captions]),
            self.mode: PICTURE if is_refiner(artifact) else gr.skip(),
        }

    def _going_on(self, event: Any) -> Updates:
        said = progress_of(event)
        updates: Updates = {} if said is None else {self.status: status(*said)}
        if isinstance(event, Stepped) and (preview := event.step.preview()) is not None:
            updates[self.now] = inlined(preview)
        return updates

    def _finished(self, event: Finished, owner: object, seconds: float) -> Updates:
        result = event.result
        name = self.studio.album.owner(owner)
        paths = [
            str(self.studio.album.add(name, image, seed, result.parameters(index)))
            for index, (image, seed) in enumerate(zip(result.images, result.seeds, strict=True))
        ]
        seeds = f"seed {result.seeds[0]}" + (f" to {result.seeds[-1]}" if len(paths) > 1 else "")
        step = pace(event.step_seconds)
        return {
            self.status: status(f"{seeds}, {seconds:.1f} s{f', {step} a step' if step else ''}"),
            self.now: paths[0],
            self.made: gr.update(value=paths, visible=len(paths) > 1),
            self.paths: paths,
            self.fields.seed: result.seeds[0],
        }


def create_tab(studio: Studio, owner: gr.BrowserState) -> CreateTab:
    """Put the tab's components into the block that is open; owner: of the pictures that are made."""
    paths = gr.State([])
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
            strength = gr.Slider(
                0, 1, STRENGTH, step=0.05, label="Strength", visible=False, elem_id="strength"
            )
            form = fields()
            with gr.Accordion("Two stages", open=False):
                refiner = gr.Dropdown([NO_REFINER], value=NO_REFINER, label="Refiner", elem_id="refiner")
                switch_at = gr.Slider(0, 1, 0.8, step=0.05, label="It takes over at")
        with gr.Column(scale=6, min_width=320, elem_id="result"):
            line = gr.HTML(READY, elem_id="status")
            now = Shown(
                show_label=False,
                interactive=False,
                format="png",
                height=520,
                elem_id="now",
                type="filepath",
                buttons=["download", "fullscreen"],
            )
            made = gr.Gallery(
                show_label=False, columns=4, visible=False, elem_id="made", allow_preview=False, buttons=[]
            )
    tab = CreateTab(
        studio, owner, model, about, prompt, negative, examples, mode, picture, mask, strength, refiner,
        switch_at, form, go, stop, line, now, made, paths,
    )  # fmt: skip
    _wire(tab)
    return tab


def _wire(tab: CreateTab) -> None:
    go = [tab.go.click, tab.prompt.submit]
    made = gr.on(go, tab.generate, tab.inputs(), tab.outputs(), concurrency_limit=None, **QUIET)
    made.failure(
        lambda: buttons(tab.go, tab.stop, running=False), None, [tab.go, tab.stop], queue=False, **QUIET
    )
    tab.stop.click(tab.studio.stop, queue=False, **QUIET)
    tab.model.input(tab.switched, tab.model, tab.of_model(), **QUIET)
    tab.mode.change(_begun, tab.mode, [tab.picture, tab.mask, tab.strength], **QUIET)
    tab.examples.click(lambda row: row[0], tab.examples, tab.prompt, **QUIET)
    tab.made.select(_pointed_at, tab.paths, tab.now, **QUIET)


def _begun(mode: str) -> tuple[Any, Any, Any]:
    """Picture, mask and strength as a way to begin needs them."""
    return (
        gr.update(visible=mode == PICTURE),
        gr.update(visible=mode == INPAINT),
        gr.update(visible=mode != TEXT, value=1.0 if mode == INPAINT else STRENGTH),
    )


def _pointed_at(paths: list[str], event: gr.SelectData) -> Any:
    return paths[event.index] if event.index in range(len(paths)) else gr.skip()


def _needed(path: object) -> str:
    if not isinstance(path, str):
        raise InvalidRequest("there is no picture to begin from; upload one, or send one here")
    return path


def _painted(value: Any) -> dict[str, Any]:
    """Picture and mask of what the editor holds."""
    background = None if value is None else value["background"]
    if background is None:
        raise InvalidRequest("there is no picture to repaint; upload one, or send one here")
    mask = Image.new("L", background.size)
    for layer in value["layers"]:
        opacity = layer.convert("RGBA").getchannel("A").resize(background.size)
        mask.paste(255, mask=opacity.point(lambda alpha: 255 * (alpha > 0)))
    if mask.getbbox() is None:
        raise InvalidRequest("nothing is painted: paint over what is to be drawn anew")
    return {"image": background.convert("RGB"), "mask": mask}
