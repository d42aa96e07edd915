"""What is asked of a job, checked, as arguments of a command."""

import unicodedata
from collections.abc import Sequence
from typing import get_args

from ...convert import Precision, Storage, Weights
from ...errors import InvalidRequest
from ...files import expanded
from ...graphs.token_merging import LARGEST_RATIO
from ...runtime.values import number, whole

LONGEST_VALUE, LONGEST_SHOWN = 4096, 60


def convert_options(
    precision: Storage, loras: Sequence[tuple[str, float]], without_t5: bool, token_merging: float | None
) -> list[str]:
    """Options of `sfumato convert`. Raises InvalidRequest."""
    if precision not in (stored := get_args(Precision) + get_args(Weights)):
        raise InvalidRequest(f"precision {precision!r}: must be {', '.join(stored)}")
    options = [f"--{'precision' if precision in get_args(Precision) else 'weights'}={precision}"]
    if without_t5:
        options.append("--without-t5")
    for file, scale in loras:
        strength = number("LoRA scale", scale, -100, 100)
        options.append(f"--lora={value('LoRA file', file)}:{strength!r}")
    if token_merging is not None:
        ratio = number("token merging", token_merging, 0, LARGEST_RATIO)
        options.append(f"--token-merging={ratio!r}")
    return options


def optimize_options(recipe: str, samples: int | None, prompts: str | None) -> list[str]:
    """Options of `sfumato optimize`. Raises InvalidRequest."""
    options = [f"--recipe={value('recipe', recipe)}"]
    if samples is not None:
        options.append(f"--samples={whole('samples', samples, 1, 10_000)}")
    if prompts is not None:
        options.append(f"--prompts={value('prompts', prompts)}")
    return options


def value(name: str, given: object) -> str:
    """A text that can be an argument. Raises InvalidRequest."""
    text = given.strip() if isinstance(given, str) else ""
    if not text:
        raise InvalidRequest(f"{name}: nothing is given; fill it in")
    if len(text) > LONGEST_VALUE or any(unicodedata.category(each) in ("Cc", "Cs") for each in text):
        raise InvalidRequest(
            f"{name} {text[:LONGEST_SHOWN]!r}: too long, or with characters that are none; correct it"
        )
    return str(expanded(text)) if text.startswith("~") else text


def shortened(text: str) -> str:
    """The end of a text that is too long for a title."""
    return text if len(text) <= LONGEST_SHOWN else f"...{text[3 - LONGEST_SHOWN :]}"
