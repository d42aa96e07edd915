"""Pictures that carry how they were made, in the `parameters` text that AUTOMATIC1111's web UI began."""

import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import InvalidRequest
from ..files import atomic_file

NEGATIVE = "Negative prompt:"
LEAST_SETTINGS = 3
"""A last line with fewer settings is taken for the prompt's, as in the web UI."""
SETTING = re.compile(r"""([^\W_][^:,"]{0,99}):\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)""")
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
WEB_UI_SAMPLERS = {
    "Euler": "euler",
    "Euler a": "euler-ancestral",
    "DDIM": "ddim",
    "PLMS": "pndm",
    "DPM++ 2M": "dpmpp-2m",
    "UniPC": "unipc",
    "LCM": "lcm",
}
WEB_UI_SPACINGS = {
    "Karras": "karras",
    "Exponential": "exponential",
    "Beta": "beta",
    "Align Your Steps": "ays",
    "Automatic": None,
    "Uniform": None,
}
"""What the web UI calls "Schedule type"; None is the sampler's own."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parameters:
    """What a `parameters` text says; settings are as they stand there, such as {"CFG scale": "7"}."""

    prompt: str
    negative_prompt: str | None = None
    settings: dict[str, str] = field(default_factory=dict)


def parameters_text(prompt: str, negative_prompt: str | None, settings: Mapping[str, object]) -> str:
    """The prompt, the negative prompt and one line of settings, without those that are None."""
    lines = [prompt]
    if negative_prompt:
        lines.append(f"{NEGATIVE} {negative_prompt}")
    pairs = (f"{key}: {_quoted(str(value))}" for key, value in settings.items() if value is not None)
    lines.append(", ".join(pairs))
    return "\n".join(lines)


def parse_parameters(text: str) -> Parameters:
    """Take a `parameters` text apart: of ours, and of the web UI with its several lines of prompts."""
    *lines, last = text.split("\n")
    settings = {key: _unquoted(value) for key, value in SETTING.findall(last)}
    if len(settings) < LEAST_SETTINGS:
        lines, settings = [*lines, last], {}
    start = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(NEGATIVE).removeprefix(" ")
    return Parameters("\n".join(lines[:start]), negative or None, settings)


def read_parameters(path: str | Path) -> Parameters:
    """What a picture says of how it was made: a PNG's text, or a JPEG's or WebP's EXIF comment.

    Raises InvalidRequest where it says nothing, or is no picture.
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
    return parse_parameters(text)


def settings(parameters: Parameters) -> dict[str, Any]:
    """The settings under the names of a request; those that mean nothing here are left out.

    A sampler or spacing that does not exist here, and a value that is no number, is left out with a warning.
    """
    found = {
        name: value
        for key, (name, read) in READERS.items()
        if key in parameters.settings and (value := _read(key, read, parameters.settings[key])) is not None
    }
    return found | _sampling(parameters.settings)


def parse_size(text: str) -> tuple[int, int]:
    """Read `WIDTHxHEIGHT`; raises ValueError for anything else."""
    width, height = text.split("x")
    return int(width), int(height)


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


def _clip_skip(text: str) -> int | None:
    """The web UI counts the last layer as 1, we count the layers that are skipped."""
    return int(text) - 1 or None


READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "Steps": ("steps", int),
    "CFG scale": ("guidance", float),
    "Seed": ("seed", int),
    "Size": ("size", parse_size),
    "Denoising strength": ("strength", float),
    "Clip skip": ("clip_skip", _clip_skip),
}


def _read(key: str, read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except ValueError:
        _log.warning("%s %r: left out, it cannot be read", key, text[:100])
        return None


def _sampling(texts: Mapping[str, str]) -> dict[str, str]:
    """Sampler and spacing; older web UIs wrote both as one name, such as "DPM++ 2M Karras"."""
    from .samplers import SAMPLERS
    from .spacings import SPACINGS

    name, label = texts.get("Sampler", ""), texts.get("Schedule type", "")
    for known in WEB_UI_SPACINGS:
        if name.endswith(f" {known}"):
            name, label = name.removesuffix(f" {known}"), known
    sampler = name if name in SAMPLERS else WEB_UI_SAMPLERS.get(name)
    if name and sampler is None:
        _log.warning("sampler %r: left out, there is none like it here", name[:100])
    spacing = label if label in SPACINGS else WEB_UI_SPACINGS.get(label)
    if label and spacing is None and label not in WEB_UI_SPACINGS:
        _log.warning("schedule type %r: left out, there is none like it here", label[:100])
    if (sampler, spacing) == ("dpmpp-2m", "karras"):
        sampler, spacing = "dpmpp-2m-karras", None
    return {key: value for key, value in (("sampler", sampler), ("spacing", spacing)) if value}


def _user_comment(data: object) -> str | None:
    """Text of EXIF's UserComment: eight bytes of its encoding's name, then UTF-16 in either byte order."""
    if not isinstance(data, bytes):
        return None
    name, body = data[:8], data[8:]
    if name != b"UNICODE\0":
        return body.decode(errors="replace")
    big_endian = body[0::2].count(0) >= body[1::2].count(0)
    return body.decode("utf-16-be" if big_endian else "utf-16-le", errors="replace")


def _quoted(value: str) -> str:
    """Values with separators in them are quoted, so that the line can be taken apart again."""
    plain = value == value.strip() and not any(character in value for character in ',:"\n')
    return value if plain else json.dumps(value, ensure_ascii=False)


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value, strict=False))
        except ValueError:
            return value
    return value.strip()
