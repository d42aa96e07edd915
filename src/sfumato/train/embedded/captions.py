"""Captions for emoji art, and how often each picture is drawn: common things first, everything in the end."""

from collections import Counter

import numpy as np

from sfumato.errors import InvalidRequest
from sfumato.train.embedded.dataset import Record

TEMPLATES = (
    ("{style} {phrase}", 0.5),
    ("{phrase}, {style} style", 0.1),
    ("{a} {phrase}, {style} style", 0.1),
    ("{phrase}, {style}", 0.05),
    ("{style} style {phrase}", 0.05),
    ("{style} {phrase}, {tag}", 0.1),
    ("{phrase}", 0.1),
)
BACKGROUND_TEMPLATES = ("{caption} on {a} {colour} background", "{caption}, {colour} background")
ON_COLOUR = 0.3
COMMON_GROUPS = ("faces", "nature", "food")
COMMON_SYMBOLS = (
    "heart",
    "star",
    "sun",
    "moon",
    "rocket",
    "house",
    "car",
    "balloon",
    "umbrella",
    "crown",
    "fire",
)


def caption(record: Record, rng: np.random.Generator) -> str:
    """A random caption for `record`; the phrase falls back to the tag-free template without tags."""
    template = str(rng.choice([t for t, _ in TEMPLATES], p=[p for _, p in TEMPLATES]))
    phrase = record.phrases[int(rng.integers(len(record.phrases)))]
    if "{tag}" in template and (not record.tags or record.background != "white"):
        template = TEMPLATES[0][0]
    tag = record.tags[int(rng.integers(len(record.tags)))] if record.tags else ""
    text = template.format(style=record.style, phrase=phrase, tag=tag, a=_article(phrase))
    if record.background == "white":
        return text
    ending = str(rng.choice(BACKGROUND_TEMPLATES))
    return ending.format(caption=text, colour=record.background, a=_article(record.background))


def evaluation(records: list[Record], split: str, count: int, seed: int = 0) -> list[tuple[int, str]]:
    """Draw `count` distinct captions "style phrase" of a split's pictures on white, each with its position.

    By weight, as a function of the seed. Raises InvalidRequest where the split has fewer.
    """
    first: dict[str, int] = {}
    for i, record in enumerate(records):
        if record.split == split and record.background == "white":
            first.setdefault(f"{record.style} {record.phrases[0]}", i)
    if len(first) < count:
        raise InvalidRequest(f"{count} captions of split {split!r}: it has {len(first)}; ask for fewer")
    weights = np.array([records[i].weight for i in first.values()])
    rng = np.random.default_rng(seed)
    picks = rng.choice(len(first), count, replace=False, p=weights / weights.sum())
    items = list(first.items())
    return [(items[i][1], items[i][0]) for i in picks]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def corpus(records: list[Record]) -> list[str]:
    """Texts that tokenizers learn their words from: every caption's words, common ones more often."""
    texts = [f"{r.style} {phrase}, {r.style} style" for r in records for phrase in r.phrases]
    return texts + [tag for r in records for tag in r.tags]


def weights(records: list[Record], common_share: float) -> np.ndarray:
    """Probability (float64 [n]) of drawing each record; common concepts get `common_share` of the draws.

    A concept is common when at least four styles show it and it is a face, an animal, a plant, food, or one
    of a few well-known objects. Within both halves styles are drawn as often as each other, lest those with
    few pictures be learned less well; of a style's, a picture counts by its weight, and less on a colour.
    """
    styles = Counter(record.concept for record in {(r.style, r.concept): r for r in records}.values())
    common = np.array([styles[r.concept] >= 4 and _is_common(r) for r in records])
    each = np.array([r.weight * (1.0 if r.background == "white" else ON_COLOUR) for r in records])
    style = np.array([r.style for r in records])
    for half, share in ((common, common_share), (~common, 1 - common_share)):
        shown = np.unique(style[half])
        for name in shown:
            own = half & (style == name)
            each[own] *= share / len(shown) / each[own].sum()
    return np.asarray(each / each.sum(), dtype=np.float64)


def word_weights(records: list[Record], words: tuple[str, ...]) -> np.ndarray:
    """Probability (float64 [n]) of drawing each record when only some words are taught, each as often.

    A record belongs to every one of `words` that its concept contains. Raises InvalidRequest for a word
    that no concept has.
    """
    chances = np.zeros(len(records))
    for word in words:
        shown = np.array([word in record.concept.replace("-", " ").split() for record in records])
        if not shown.any():
            raise InvalidRequest(f"no picture shows {word!r}; words are those of the concepts' names")
        chances += shown / shown.sum()
    return np.asarray(chances / chances.sum(), dtype=np.float64)


def _is_common(record: Record) -> bool:
    words = record.concept.replace("-", " ").split()
    return record.group in COMMON_GROUPS or any(word in COMMON_SYMBOLS for word in words)
