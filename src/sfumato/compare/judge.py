"""What pictures are worth: against the reference's, and against their prompts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .evaluator import BATCH, Evaluator, Reading
from .fidelity import frechet_distance, psnr, recall, ssim
from .records import Fidelity, Recall

FRECHET_PICTURES = 50
"""Fewer say more about which pictures they happen to be than about the models."""


@dataclass(frozen=True)
class Judgement:
    """fidelity: of each model that could be held against the reference. recall: of each, or empty."""

    fidelity: dict[str, Fidelity]
    recall: dict[str, Recall]
    notes: list[str]


def judge(
    pictures: Mapping[str, Sequence[Path]],
    prompts: Sequence[str],
    reference: str,
    comparable: Sequence[str],
    *,
    evaluator: Evaluator | None = None,
) -> Judgement:
    """Judge PNGs, by the model's name, picture i made for prompt i.

    comparable: the models whose pictures ought to be the reference's, pixel by pixel.
    """
    evaluator = evaluator or Evaluator()
    readable = reads(evaluator, prompts)
    enough = len(prompts) >= FRECHET_PICTURES
    notes = []
    if comparable and not enough:
        notes.append(
            f"No Frechet distance: it needs {FRECHET_PICTURES} pictures or more; there are {len(prompts)}."
        )
    if not readable:
        styles = ", ".join(evaluator.styles)
        notes.append(
            "No R@1 and style: the evaluator that ships knows icons only, in prompts that begin with a style "
            f"({styles}); of these prompts, not all do."
        )
    if readable and len(set(prompts)) < 2:
        readable = False
        notes.append("No R@1 and style: one prompt has no other to be mistaken for.")
    seen = {name: _read(evaluator, files) for name, files in pictures.items()} if readable or enough else {}
    fidelity = {}
    for name in comparable:
        features = (seen[name].features, seen[reference].features) if enough else None
        fidelity[name] = fidelity_of(pictures[name], pictures[reference], evaluator, features)
    recalls = {name: recall_of(seen[name], prompts, evaluator) for name in pictures} if readable else {}
    return Judgement(fidelity, recalls, notes)


def reads(evaluator: Evaluator, prompts: Sequence[str]) -> bool:
    """Whether every prompt is in the evaluator's language: `noto red apple`, the style first."""
    return all(_style(prompt) in evaluator.styles for prompt in prompts)


def fidelity_of(
    files: Sequence[Path],
    reference: Sequence[Path],
    evaluator: Evaluator,
    features: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> Fidelity:
    """One model's PNGs against the reference's, in the same order; features: of both, for their distance."""
    noise, structure, distance = [], [], []
    for first, second in zip(_batches(files), _batches(reference), strict=True):
        noise += [psnr(*pair) for pair in zip(first, second, strict=True)]
        structure += [ssim(*pair) for pair in zip(first, second, strict=True)]
        distance += evaluator.distance(first, second).tolist()
    differing = [value for value in noise if np.isfinite(value)]
    return Fidelity(
        psnr=fmean(differing) if differing else None,
        psnr_worst=min(differing, default=None),
        ssim=fmean(structure),
        ssim_worst=min(structure),
        distance=fmean(distance),
        frechet=None if features is None else frechet_distance(*features),
    )


def recall_of(seen: Reading, prompts: Sequence[str], evaluator: Evaluator) -> Recall:
    """What was seen in pictures, against the prompts that they were made for."""
    texts, captions = evaluator.embed(prompts), list(prompts)
    wanted = np.array([evaluator.styles.index(_style(prompt)) for prompt in prompts])
    return Recall(
        r1=recall(seen.embedding, texts, captions, 1),
        r5=recall(seen.embedding, texts, captions, 5),
        style=float(np.mean(seen.style.argmax(1) == wanted)),
    )


def pixels(file: Path) -> NDArray[np.uint8]:
    """A picture's pixels, uint8 [height, width, 3]."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _read(evaluator: Evaluator, files: Sequence[Path]) -> Reading:
    parts = [evaluator.read(batch) for batch in _batches(files)]
    names = ("embedding", "features", "style")
    return Reading(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _batches(files: Sequence[Path]) -> Iterator[NDArray[np.uint8]]:
    """Pictures of one size in batches, so that a thousand of them need not fit into memory."""
    for begin in range(0, len(files), BATCH):
        yield np.stack([pixels(file) for file in files[begin : begin + BATCH]])


def _style(prompt: str) -> str:
    return (prompt.lower().split() or [""])[0]
