"""Pictures that people hand to the page, looked at before anything decodes them."""

from abc import ABCMeta
from typing import Any

import gradio as gr
from gradio.component_meta import ComponentMeta
from gradio.data_classes import FileData, ImageData

from ...errors import InvalidRequest
from ...runtime.pictures import opened

MOST_BYTES = 32 * 2**20
SOURCES = ["upload", "clipboard"]
PAINT = "rgba(225, 60, 60, 0.6)"


def refused(error: Exception) -> gr.Error:
    """What the page shows of an error: its one line."""
    return gr.Error(str(error), print_exception=False)


class _WithoutStub(ComponentMeta):
    """A component's class for which Gradio does not write a .pyi file beside its source."""

    def __new__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> Any:
        return ABCMeta.__new__(cls, name, bases, attributes)


class Picture(gr.Image, metaclass=_WithoutStub):
    """Made by `picture_input`: a picture as the file that was handed in.

    What is none, or too large, is refused by its header.
    """

    is_template = True

    def preprocess(self, payload: ImageData | None) -> str | None:
        if payload is None:
            return None
        return _checked(payload.path)


class MaskEditor(gr.ImageEditor, metaclass=_WithoutStub):
    """Made by `mask_input`: a picture with a mask painted over it.

    Layers come as RGBA, transparent where nothing was painted.
    """

    is_template = True

    def convert_and_format_image(self, file: FileData | bytes | None, flatten_on_white: bool = False) -> Any:
        if isinstance(file, FileData):
            _checked(file.path)
        try:
            return super().convert_and_format_image(file, flatten_on_white)
        except Exception as error:  # Pillow's decoders raise whatever damaged bytes make them trip over
            raise gr.Error(f"the picture cannot be read ({error})", print_exception=False) from error


def picture_input(**options: Any) -> Picture:
    """A place to put a picture, whose value is its file."""
    return Picture(type="filepath", image_mode=None, sources=SOURCES, buttons=["fullscreen"], **options)


def mask_input(**options: Any) -> MaskEditor:
    """A place to put a picture and paint over it."""
    brush = gr.Brush(default_size=24, colors=[PAINT], color_mode="fixed")
    return MaskEditor(
        type="pil",
        image_mode="RGBA",
        sources=SOURCES,
        brush=brush,
        layers=False,
        transforms=(),
        buttons=["fullscreen"],
        format="png",
        **options,
    )


def _checked(path: str | None) -> str:
    if path is None:
        raise gr.Error("the picture did not arrive; upload it again", print_exception=False)
    try:
        with opened(path):
            pass
    except InvalidRequest as error:
        line = str(error).replace(path, "the picture")
        raise gr.Error(line, print_exception=False) from error
    return path
