"""Pictures on disk, which carry how they were made."""

import os
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import InvalidRequest
from ..files import atomic_file
from .parameters import MAX_TEXT, Parameters, parse_parameters

EXIF_IFD, USER_COMMENT = 0x8769, 0x9286


def save_png(
    image: Image.Image, path: Path, parameters: str | None = None, texts: Mapping[str, str] | None = None
) -> None:
    """Write a PNG whole or not at all, also when the power fails.

    parameters: its text block of that name, unless None. texts: further ones.
    Raises InvalidRequest where `path` cannot be written and SfumatoError where the disk is full.
    """
    info = PngInfo()
    if parameters is not None:
        info.add_text("parameters", parameters)
    for key, text in (texts or {}).items():
        info.add_text(key, text)
    with atomic_file(path) as partial:
        image.save(partial, format="PNG", pnginfo=info)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())


def read_parameters(path: str | Path) -> Parameters:
    """What a picture says of how it was made: a PNG's text, or a JPEG's or WebP's EXIF comment.

    Raises InvalidRequest where it says nothing, or more than MAX_TEXT characters, or is no picture.
    """
    from .pictures import opened  # brings NumPy: not for writing, which `--help` imports

    with opened(path) as image:
        text = image.info.get("parameters")
        if text is None and image.format == "PNG":
            image.load()  # texts may also come after the pixels
            text = image.info.get("parameters")
        if text is None:
            text = _user_comment(image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT))
    if not isinstance(text, str) or not text.strip("\0 \n"):
        raise InvalidRequest(f"{path}: does not say how it was made (no `parameters` text); give a prompt")
    if len(text) > MAX_TEXT:
        raise InvalidRequest(
            f"{path}: its `parameters` text has {len(text)} characters, and at most {MAX_TEXT} are read; "
            "give a prompt"
        )
    return parse_parameters(text)


def _user_comment(data: object) -> str | None:
    """Text of EXIF's UserComment: eight bytes of its encoding's name, then UTF-16 in either byte order."""
    if not isinstance(data, bytes):
        return None
    name, body = data[:8], data[8:]
    if name != b"UNICODE\0":
        return body.decode(errors="replace")
    big_endian = body[0::2].count(0) >= body[1::2].count(0)
    return body.decode("utf-16-be" if big_endian else "utf-16-le", errors="replace")
