r"""Weights in prompts, as AUTOMATIC1111's web UI writes them: `(word:1.3)`, `(word)`, `[word]`, `BREAK`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..errors import InvalidRequest

MAX_WEIGHT = 100
_FACTORS = {"(": 1.1, "[": 1 / 1.1}
# Possessive quantifiers (`*+`, `++`) keep hostile texts from being read again and again.
_PIECE = re.compile(
    r"""
    \\(?P<literal>[()\[\]])
    | (?P<open>[(\[])
    | (?P<close>\] | (?: :\s*+ (?P<weight>[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)) \s*+ )? \))
    | [^()\[\]\\:]++
    | [\\:]
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")


@dataclass(frozen=True)
class Fragment:
    """A part of a prompt's text, and how much it counts: 1 is as it is."""

    text: str
    weight: float = 1.0


def parse(text: str) -> list[list[Fragment]]:
    r"""The fragments of each chunk that a prompt asks for; at least one chunk.

    `(word:1.3)` counts 1.3 times, `(word)` 1.1 times, `[word]` 1 / 1.1 times; nested weights are multiplied.
    `\(`, `\)`, `\[` and `\]` are plain brackets, as is a bracket without a partner. `BREAK`, as a word of its
    own, starts a new chunk; chunks of blanks are left out. Neighbours of equal weight are one fragment, so
    that a text without any of this is one fragment too.

    Raises InvalidRequest for a weight beyond MAX_WEIGHT.
    """
    pieces = list(_PIECE.finditer(text))
    factors = _factors(pieces)
    chunks: list[list[Fragment]] = [[]]
    weights = [1.0]
    for index, piece in enumerate(pieces):
        if index not in factors:
            head, *tail = _BREAK.split(piece["literal"] or piece[0])
            chunks[-1].append(Fragment(head, weights[-1]))
            chunks += [[Fragment(part, weights[-1])] for part in tail]
        elif (factor := factors[index]) is None:
            weights.pop()
        else:
            weights.append(weights[-1] * factor)
    merged = [_merged(chunk) for chunk in chunks]
    return [chunk for chunk in merged if any(part.text.strip() for part in chunk)] or merged[:1]


def _factors(pieces: Sequence[re.Match[str]]) -> Mapping[int, float | None]:
    """For each bracket with a partner, by index: what an opening one multiplies by, None for a closing one.

    A bracket that opens inside a pair, and is not closed there, has no partner.
    """
    factors: dict[int, float | None] = {}
    unclosed: list[int] = []
    counts = dict.fromkeys(_FACTORS, 0)
    for index, piece in enumerate(pieces):
        if piece["open"]:
            unclosed.append(index)
            counts[piece["open"]] += 1
        elif piece["close"]:
            wanted = "[" if piece["close"] == "]" else "("
            opened = None
            while counts[wanted] and opened != wanted:
                start = unclosed.pop()
                opened = pieces[start]["open"]
                counts[opened] -= 1
            if opened:
                factors[start] = float(piece["weight"] or _FACTORS[wanted])
                factors[index] = None
    return factors


def _merged(chunk: Sequence[Fragment]) -> list[Fragment]:
    runs = groupby((part for part in chunk if part.text), key=lambda part: part.weight)
    return [_checked(Fragment("".join(part.text for part in run), weight)) for weight, run in runs]


def _checked(fragment: Fragment) -> Fragment:
    if abs(fragment.weight) <= MAX_WEIGHT:  # false for what is no number, too
        return fragment
    text = fragment.text.strip()
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    raise InvalidRequest(
        f"prompt: weight {fragment.weight:g} of {shown!r} must be from {-MAX_WEIGHT} to {MAX_WEIGHT}; write "
        r"\( and \) for plain parentheses"
    )
