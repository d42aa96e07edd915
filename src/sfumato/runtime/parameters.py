"""How a picture was made, as text: the `parameters` block that AUTOMATIC1111's web UI began."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from .. import __version__

if TYPE_CHECKING:
    from ..graphs.token_merging import TokenMerging
    from .request import Request

NEGATIVE = "Negative prompt:"
MERGING, MERGING_METHOD = "Token merging ratio", "Token merging method"
LEAST_SETTINGS = 3
"""A last line with fewer settings is taken for the prompt's, as in the web UI."""
MAX_TEXT = 100_000
"""Most characters of a text that comes in: many times those of the longest prompts."""
SETTING = re.compile(r"""(?<![^\W_])([^\W_][^:,"]{0,99}+):\s*+("(?:[^"\\]|\\.)*+"|[^,]*+)(?:,|$)""")
"""A name, which begins with a word, and its value; possessive, so that hostile texts take no longer."""
SIZE = re.compile(r"\s*([1-9][0-9]{0,8})\s*[xX×]\s*([1-9][0-9]{0,8})\s*")
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


@dataclass(frozen=True)
class Models:
    """What made a picture: names of models, and how the first merged tokens beyond what its folder says."""

    model: str
    refiner: str | None = None
    merging: "TokenMerging | None" = None


def parameters_text(prompt: str, negative_prompt: str | None, settings: Mapping[str, object]) -> str:
    """The prompt, the negative prompt and one line of settings, without those that are None.

    A negative prompt that is empty has its line as well: other tools read it as none at all.
    """
    lines = [prompt]
    if negative_prompt is not None:
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
    negative = None
    if start < len(lines):
        negative = "\n".join(lines[start:]).removeprefix(NEGATIVE).removeprefix(" ")
    return Parameters("\n".join(lines[:start]), negative, settings)


def described(request: "Request", index: int, made_by: Models) -> str:
    """The text of picture `index` of a request. What is at its default is left out."""
    merging = made_by.merging
    rows: dict[str, object] = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "Schedule type": request.spacing,
        "CFG scale": _number(request.guidance),
        "Seed": request.seeds[index],
        "Size": f"{request.size[0]}x{request.size[1]}",
        "Model": made_by.model,
        "Denoising strength": None if request.image is None else _number(request.strength),
        "Refiner": made_by.refiner,
        MERGING: None if merging is None else _number(merging.ratio),
        MERGING_METHOD: None if merging is None or merging.method == "match" else merging.method,
    }
    defaults = {field.name: field.default for field in fields(request)}
    for row in ROWS:
        value = getattr(request, row.name)
        rows[row.key] = None if value == defaults[row.name] else row.write(value)
    rows["Version"] = f"sfumato {__version__}"
    return parameters_text(request.prompt, request.negative_prompt if request.guided else None, rows)


def settings(parameters: Parameters) -> dict[str, Any]:
    """The settings under the names of a request; those that mean nothing here are left out.

    A sampler or spacing that does not exist here, and a value that is no number, is left out with a warning.
    """
    found = {
        row.name: value
        for row in (*BASE_ROWS, *ROWS)
        if row.key in parameters.settings and (value := _read(row, parameters.settings[row.key])) is not None
    }
    return found | _sampling(parameters.settings)


def merging(parameters: Parameters) -> dict[str, Any]:
    """How tokens were merged, under the names of `Pipeline.load`; empty where they were not."""
    texts = parameters.settings
    ratio = _read(Row(MERGING, "token_merging", float), texts.get(MERGING, "0"))
    method = texts.get(MERGING_METHOD, "match")
    return {"token_merging": ratio, "merging_method": method} if ratio else {}


def parse_size(text: str) -> tuple[int, int]:
    """Read `WIDTHxHEIGHT` in pixels; raises ValueError, saying what to write, for anything else."""
    found = SIZE.fullmatch(text)
    if found is None:
        raise ValueError("write WIDTHxHEIGHT in pixels, such as 128x128")
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class Row:
    """A setting of the text and the request's name for it."""

    key: str
    name: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = str


def _number(value: float) -> str:
    return f"{value:.10g}"


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split())


def _layers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split())


def _joined(values: Iterable[float]) -> str:
    return " ".join(map(_number, values))


BASE_ROWS = (
    Row("Steps", "steps", int),
    Row("CFG scale", "guidance", float),
    Row("Seed", "seed", int),
    Row("Size", "size", parse_size),
    Row("Denoising strength", "strength", float),
)
"""How they are written is `described`'s: some depend on what else is there."""
ROWS = (
    Row("Refiner switch at", "switch_at", float, _number),
    # The web UI counts the last layer as 1, we count the layers that are skipped.
    Row("Clip skip", "clip_skip", lambda text: int(text) - 1 or None, lambda value: str(value + 1)),
    Row("Shift", "shift", float, _number),
    Row("Eta", "eta", float, _number),
    Row("CFG Rescale phi", "guidance_rescale", float, _number),
    Row("CFG interval", "guidance_interval", _numbers, _joined),
    Row("CFG every", "guidance_every", int),
    Row("Skip layers", "skip_layers", _layers, _joined),
    Row("Skip layers scale", "skip_layers_scale", float, _number),
    Row("Skip layers start", "skip_layers_start", float, _number),
    Row("Skip layers stop", "skip_layers_stop", float, _number),
    Row("Reuse", "reuse", str),
    Row("Prompt 2", "prompt_2", str),
    Row("Prompt 3", "prompt_3", str),
    Row("Negative prompt 2", "negative_prompt_2", str),
    Row("Negative prompt 3", "negative_prompt_3", str),
)


def _read(row: Row, text: str) -> Any:
    try:
        return row.read(text)
    except ValueError:
        _log.warning("%s %r: left out, it cannot be read", row.key, text[:100])
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
