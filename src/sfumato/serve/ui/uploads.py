"""Pictures that people hand to the page, looked at before anything decodes them."""

from abc import ABCMeta
from typing import Any

import gradio as gr
from gradio import processing_utils
from gradio.component_meta import ComponentMeta
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs
from gradio.data_classes import FileData, ImageData

from ...errors import InvalidRequest
from ...runtime.pictures import opened
from .errors import toast

MOST_BYTES = 32 * 2**20
MOST_LAYERS = 16
MOST_UNREAD = 32
"""Paintings that the server holds until the form that they are of is sent."""
SOURCES = ["upload", "clipboard"]
PAINT = "rgba(225, 60, 60, 0.6)"


class WithoutStub(ComponentMeta):
    """A component's class for which Gradio does not write a .pyi file beside its source."""

    def __new__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> Any:
        return ABCMeta.__new__(cls, name, bases, attributes)


class Picture(gr.Image, metaclass=WithoutStub):
    """Made by `picture_input`: a picture as the file that was handed in.

    What is none, or too large, is refused by its header.
    """

    is_template = True

    def preprocess(self, payload: ImageData | None) -> str | None:
        if payload is None:
            return None
        return _checked(payload.path)


class MaskEditor(gr.ImageEditor, metaclass=WithoutStub):
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
            raise toast(f"the picture cannot be read ({error})") from error

    @server
    def accept_blobs(self, data: AcceptBlobs) -> None:
        index = str(data.data["index"])
        fits = all(len(content) <= MOST_BYTES for _, content in data.files)
        if not fits or (index.isdecimal() and int(index) >= MOST_LAYERS):
            raise toast("the painting is too large")
        while len(self.blob_storage) >= MOST_UNREAD:
            del self.blob_storage[next(iter(self.blob_storage))]
        super().accept_blobs(data)


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


def refuse_addresses() -> None:
    """Have Gradio take files alone: it would fetch an address that stands in the place of one."""
    processing_utils.async_ssrf_protected_download = _refused


async def _refused(*_: Any, **__: Any) -> str:
    raise toast("an address is no picture; upload the picture itself")


def _checked(path: str | None) -> str:
    if path is None:
        raise toast("the picture did not arrive; upload it again")
    try:
        with opened(path):
            pass
    except InvalidRequest as error:
        raise toast(str(error).replace(path, "the picture")) from error
    return path
