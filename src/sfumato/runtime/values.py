"""Checks of single values that a person gives; each raises InvalidRequest with the value and the remedy."""

import difflib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InvalidRequest
from ..manifest import LatentSpace

MAX_SEED = 2**63 - 1
MAX_GUIDANCE = 1000
MAX_PIXELS = 1024 * 1024
MAX_ENLARGEMENT = 4
"""Most pixels of a picture: MAX_PIXELS, or so many times the model's own."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`did you mean 'euler'? `, for the middle of a message; nothing where no known name is near."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {nearest[0]!r}? " if nearest else ""


def text(name: str, value: Any) -> str:
    """Unicode text."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} {value!r}: must be one text")
    stray = next((character for character in value if "\ud800" <= character <= "\udfff"), None)
    if stray is not None:
        raise InvalidRequest(f"{name}: {stray!r} is half a character; give Unicode text")
    return value


def guidance(name: str, value: Any) -> float:
    """A guidance scale, for the prompt or for layers that are left out."""
    return number(name, value, -MAX_GUIDANCE, MAX_GUIDANCE)


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number from least to most."""
    right = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if right and least <= value <= most:
        return int(value)
    raise InvalidRequest(f"{name} {value!r}: must be a whole number from {least} to {most}")


def number(name: str, value: Any, least: float, most: float) -> float:
    """A finite number from least to most."""
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if real and least <= value <= most:
        return float(value)
    raise InvalidRequest(f"{name} {value!r}: must be a finite number from {least:g} to {most:g}")


def not_negative(name: str, value: float) -> float:
    """A finite number from 0 up."""
    if 0 <= value < math.inf:
        return value
    raise InvalidRequest(f"{name} {value}: must be a finite number, 0 or more")


def numbers(name: str, value: Any) -> tuple[Any, ...]:
    """Several values, unchecked."""
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(value)
    raise InvalidRequest(f"{name} {value!r}: must be a list of numbers")


def most_pixels(space: LatentSpace) -> int:
    """How many pixels a picture of this model may have."""
    return max(MAX_PIXELS, MAX_ENLARGEMENT * math.prod(space.default_size))


def size(value: Any, space: LatentSpace) -> tuple[int, int]:
    """Width and height in pixels that the model can draw."""
    try:
        width, height = (None, None) if isinstance(value, str) else value
    except (TypeError, ValueError):
        width, height = None, None
    if width is None or height is None:
        raise InvalidRequest(f"size {value!r}: must be a width and a height, such as (512, 512)")
    most = most_pixels(space)
    width, height = whole("width", width, 1, most), whole("height", height, 1, most)
    multiple = space.size_multiple
    if width % multiple or height % multiple:
        nearest = (max(1, (side + multiple // 2) // multiple) * multiple for side in (width, height))
        raise InvalidRequest(
            f"size {width}x{height}: both sides must be multiples of {multiple}; "
            f"nearest is {'x'.join(map(str, nearest))}"
        )
    if space.largest_side and max(width, height) > space.largest_side:
        raise InvalidRequest(
            f"size {width}x{height}: the model knows positions for sides of {space.largest_side} at most"
        )
    if width * height > most:
        own = "x".join(map(str, space.default_size))
        raise InvalidRequest(
            f"size {width}x{height}: too many pixels; a model made for {own} takes {most} at most"
        )
    return width, height
