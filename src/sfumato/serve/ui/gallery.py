"""The tab of all pictures that a browser has made, which say how they were made and can be worked on."""

from pathlib import Path
from typing import Any

import gradio as gr

from ...errors import InvalidRequest, SfumatoError
from ...runtime.png import read_parameters
from .create import INPAINT, PICTURE, TEXT, CreateTab
from .studio import Studio
from .uploads import refused
from .versus import VersusTab

Updates = dict[Any, Any]


def gallery_tab(
    studio: Studio, owner: gr.BrowserState, create: CreateTab, versus: VersusTab, tabs: gr.Tabs
) -> gr.Gallery:
    """Put the tab's components into the block that is open, and wire them.

    versus: the A/B tab. tabs: the page's tabs, to go to another one.
    """
    chosen = gr.State()
    with gr.Row():
        with gr.Column(scale=6, min_width=320):
            shown = gr.Gallery(
                label="Pictures", columns=5, height=620, elem_id="gallery", object_fit="contain"
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
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def pictures(name: Any) -> list[str]:
        return [str(path) for path in studio.album.pictures(name)]

    def select(name: Any, event: gr.SelectData) -> tuple[str | None, str]:
        found = pictures(name)
        if not 0 <= event.index < len(found):
            return None, ""
        return found[event.index], described(found[event.index])

    def needed(path: str | None) -> str:
        if path is None:
            raise refused(InvalidRequest("choose a picture first"))
        return path

    def to_text(path: str | None) -> Updates:
        try:
            return create.repeated(needed(path)) | {create.mode: TEXT, tabs: gr.Tabs(selected="create")}
        except SfumatoError as error:
            raise refused(error) from error

    def to_versus(path: str | None) -> Updates:
        try:
            return versus.repeated(needed(path)) | {tabs: gr.Tabs(selected="versus")}
        except SfumatoError as error:
            raise refused(error) from error

    def away(name: str, path: str | None) -> tuple[list[str], None, str]:
        studio.album.remove(name, Path(needed(path)))
        return pictures(name), None, ""

    shown.select(select, owner, [chosen, said], **quiet)
    settings = [create.prompt, create.negative, create.model, create.mode, tabs, *create.fields.all()]
    again.click(to_text, chosen, settings, **quiet)
    onward.click(
        lambda path: (needed(path), PICTURE, gr.Tabs(selected="create")),
        chosen,
        [create.picture, create.mode, tabs],
        **quiet,
    )
    repaint.click(
        lambda path: (
            {"background": needed(path), "layers": [], "composite": None},
            INPAINT,
            gr.Tabs(selected="create"),
        ),
        chosen,
        [create.mask, create.mode, tabs],
        **quiet,
    )
    judge.click(to_versus, chosen, [*versus.form(), tabs], **quiet)
    remove.click(away, [owner, chosen], [shown, chosen, said], **quiet)
    return shown


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
