"""Pictures while they come to be: sent inside the message, so that no step of them goes to the disk."""

import base64
from io import BytesIO
from typing import Any

import gradio as gr
from gradio.components.imageslider import SliderData
from gradio.data_classes import ImageData
from PIL import Image

from .uploads import WithoutStub

SHOWN = 512
"""Longer side of a preview in pixels."""
INLINE = "data:image/jpeg;base64,"


def inlined(preview: Image.Image) -> str:
    """A preview, large enough to be looked at, as the URL of itself."""
    factor = SHOWN / max(preview.size)
    width, height = (max(1, round(side * factor)) for side in preview.size)
    buffer = BytesIO()
    preview.convert("RGB").resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return INLINE + base64.b64encode(buffer.getvalue()).decode()


class Shown(gr.Image, metaclass=WithoutStub):
    """A picture to look at: a file, or what `inlined` made."""

    is_template = True

    def postprocess(self, value: Any) -> Any:
        return _inline(value) or super().postprocess(value)


class ShownPair(gr.ImageSlider, metaclass=WithoutStub):
    """Two pictures with a slider between them, each a file, a PIL image, or what `inlined` made."""

    is_template = True

    def postprocess(self, value: Any) -> Any:
        ready = super().postprocess(
            None if value is None else tuple(None if _inline(v) else v for v in value)
        )
        if ready is None:
            return None
        first, second = (_inline(given) or done for given, done in zip(value, ready.root, strict=True))
        return SliderData(root=(first, second))


def _inline(value: Any) -> ImageData | None:
    return ImageData(url=value) if isinstance(value, str) and value.startswith(INLINE) else None
