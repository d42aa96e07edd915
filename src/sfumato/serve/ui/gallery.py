"""The tab of all pictures that a browser has made, which say how they were made and can be worked on."""

from pathlib import Path
from typing import Any

import gradio as gr

from ...errors import InvalidRequest, SfumatoError
from ...runtime.png import read_parameters
from .create import INPAINT, PICTURE, CreateTab
from .errors import toasts
from .fields import Updates
from .studio import QUIET, Studio
from .versus import VersusTab


def gallery_tab(
    studio: Studio, owner: gr.BrowserState, create: CreateTab, versus: VersusTab, tabs: gr.Tabs, tab: gr.Tab
) -> None:
    """Put the tab's components into the block that is open, and wire them.

    versus: the A/B tab. tabs: the page's tabs, to go to another one. tab: this one.
    """
    chosen = gr.State()
    with gr.Row():
        with gr.Column(scale=6, min_width=320):
            shown = gr.Gallery(
                label="Pictures",
                columns=5,
                height=620,
                elem_id="gallery",
                object_fit="contain",
                buttons=["download", "fullscreen"],  # the default has one that sends a picture to the Hub
            )
        with gr.Column(scale=4, min_width=300):
            said = gr.Textbox(
                label="How it was made", lines=8, interactive=False, elem_id="said", buttons=["copy"]
            )
            again = gr.Button("Use its prompt and settings", elem_id="send-text")
            onward = gr.Button("Begin from it", elem_id="send-picture")
            repaint = gr.Button("Repaint a part of it", elem_id="send-mask")
            judge = gr.Button("Hold models side by side with it", elem_id="send-versus")
            remove = gr.Button("Remove it", variant="stop", elem_id="remove")

    def pictures(name: Any) -> list[str]:
        return [str(path) for path in studio.album.pictures(name)]

    def listed(name: Any, path: str | None) -> tuple[Any, str | None, str]:
        found = pictures(name)
        if path is None or not found:
            return gr.update(value=found, selected_index=None), None, ""
        # Gradio goes on to show one of them, which is then the one to work with.
        place = found.index(path) if path in found else 0
        return gr.update(value=found, selected_index=place), found[place], described(found[place])

    def select(name: Any, event: gr.SelectData) -> tuple[str | None, str]:
        # The list may have grown since the page showed it, so the place in it says nothing.
        pointed = Path(str(event.value["image"]["path"])).name
        path = next((path for path in pictures(name) if Path(path).name == pointed), None)
        return path, "it is no longer there" if path is None else described(path)

    def to_text(path: str | None) -> Updates:
        with toasts():
            return create.repeated(_needed(path)) | {tabs: gr.Tabs(selected="create")}

    def to_picture(path: str | None) -> Updates:
        with toasts():
            return {create.picture: _needed(path), create.mode: PICTURE, tabs: gr.Tabs(selected="create")}

    def to_mask(path: str | None) -> Updates:
        with toasts():
            value: Any = {"background": _needed(path), "layers": [], "composite": None}
            return {create.mask: value, create.mode: INPAINT, tabs: gr.Tabs(selected="create")}

    def to_versus(path: str | None) -> Updates:
        with toasts():
            return versus.repeated(_needed(path)) | {tabs: gr.Tabs(selected="versus")}

    def away(name: str, path: str | None) -> tuple[Any, str | None, str]:
        with toasts():
            older = next((each for each in pictures(name) if each < _needed(path)), path)
            studio.album.remove(name, Path(_needed(path)))
            return listed(name, older)

    tab.select(listed, [owner, chosen], [shown, chosen, said], **QUIET)
    shown.select(select, owner, [chosen, said], **QUIET)
    again.click(to_text, chosen, [*create.repeats(), tabs], **QUIET)
    onward.click(to_picture, chosen, [create.picture, create.mode, tabs], **QUIET)
    repaint.click(to_mask, chosen, [create.mask, create.mode, tabs], **QUIET)
    judge.click(to_versus, chosen, [*versus.form(), tabs], **QUIET)
    remove.click(away, [owner, chosen], [shown, chosen, said], **QUIET)


def _needed(path: str | None) -> str:
    if path is None or not Path(path).is_file():
        raise InvalidRequest("choose a picture first")
    return path


def described(path: str) -> str:
    """The text that a picture carries."""
    try:
        carried = read_parameters(path)
    except SfumatoError as error:
        return str(error)
    lines = [carried.prompt]
    if carried.negative_prompt:
        lines.append(f"not: {carried.negative_prompt}")
    return "\n".join([*lines, "", *(f"{key}: {value}" for key, value in carried.settings.items())])
