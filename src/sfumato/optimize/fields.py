"""What single values of a recipe may be; each check raises InvalidRequest with the value and the remedy."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..runtime import values
from ..runtime.parameters import parse_size

FORMAT = 1
MERGING = ("token_merging", "merging_method")
MODES: dict[str, tuple[str, ...]] = {
    "keep": MERGING,
    "int8": (
        *("weights", "group_size", "symmetric"),
        *("smooth", "bias_correction", "keep", "weights_only"),
        *MERGING,
    ),
    "int8-weights": ("keep", *MERGING),
    "int4": ("group_size", "ratio", "symmetric", "scale_estimation", "keep", *MERGING),
    "nf4": ("group_size", "ratio", "scale_estimation", "keep", *MERGING),
    "hybrid": (
        *("weights", "group_size", "ratio", "symmetric"),
        *("smooth", "bias_correction", "keep", "weights_only"),
        *MERGING,
    ),
}
"""The modes, and the keys that mean something with each."""
PARTS = (
    "first_convolution",
    "last_projection",
    "time_embedding",
    "modulation",
    "skip_connections",
    "embeddings",
)
LAYER = "layer:"
WEIGHTS = ("int8", "int4", "nf4")
METHODS = ("match", "pool")
GROUP_SIZES = (-1, 16, 32, 64, 128, 256, 512)
PROMPTS = ("auto", "general", "icons")


def hint(name: str, known: Iterable[str]) -> str:
    """`did you mean 'int8'?`, or what there is when nothing is near."""
    return values.did_you_mean(name, list(known)).strip() or f"there is {', '.join(known)}"


def check_format(value: Any) -> int:
    if type(value) is not int or value != FORMAT:
        raise InvalidRequest(f"format {value!r}: must be {FORMAT}; a newer Sfumato may know others")
    return value


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} {value!r}: must be true or false")
    return value


def line(name: str, value: Any, most: int) -> str:
    text = values.text(name, value)
    if len(text) > most or not text.isprintable():
        raise InvalidRequest(f"{name} {text!r}: must be one printable line of at most {most} characters")
    return text


def mode(value: Any) -> str:
    if not isinstance(value, str) or value not in MODES:
        raise InvalidRequest(f"mode {value!r}: no such mode; {hint(str(value), MODES)}")
    return value


def group_size(value: Any) -> int:
    if type(value) is not int or value not in GROUP_SIZES:
        raise InvalidRequest(
            f"group_size {value!r}: must be a power of two from 16 to 512, or -1 for a whole row"
        )
    return value


def smooth(value: Any) -> float | str | None:
    if value is None:
        return None
    if value == "auto":
        return "auto"
    try:
        return values.number("smooth", value, 0, 1)
    except InvalidRequest as error:
        raise InvalidRequest(f'{error}, or "auto"') from None


def weights(value: Any) -> str:
    if value not in WEIGHTS:
        raise InvalidRequest(f"weights {value!r}: no such form; {hint(str(value), WEIGHTS)}")
    return str(value)


def merging_method(value: Any) -> str:
    if value not in METHODS:
        raise InvalidRequest(f"merging_method {value!r}: no such method; {hint(str(value), METHODS)}")
    return str(value)


def parts(name: str, value: Any) -> tuple[str, ...]:
    """Parts without repetition: those that have a name in their order, then layers."""
    if not isinstance(value, list | tuple):
        raise InvalidRequest(f'{name} {value!r}: must be a list of parts, such as ["modulation"]')
    for part in value:
        layer = isinstance(part, str) and part.startswith(LAYER) and part.isprintable() and part != LAYER
        if part not in PARTS and not layer:
            raise InvalidRequest(
                f"{name} {part!r}: no such part; {hint(str(part), PARTS)} "
                f"(or {LAYER}NAME, in which * stands for any text)"
            )
    return tuple(part for part in PARTS if part in value) + tuple(sorted(set(value) - set(PARTS)))


def prompts(value: Any) -> str:
    text = values.text("prompts", value)
    if text not in PROMPTS and not Path(text).suffix and "/" not in text:
        raise InvalidRequest(f"prompts {text!r}: no such captions; {hint(text, PROMPTS)} (or a .txt file)")
    if not text.isprintable():
        raise InvalidRequest(f"prompts {text!r}: must be a printable file name")
    return text


def size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    try:
        width, height = parse_size(value) if isinstance(value, str) else value
    except (TypeError, ValueError):
        raise InvalidRequest(f'size {value!r}: must be "WIDTHxHEIGHT" in pixels, such as "512x512"') from None
    return values.whole("width", width, 8, 8192), values.whole("height", height, 8, 8192)
