"""How near pictures are to others of the same prompts and seeds, and to what their prompts say."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.artifact import Artifact
from sfumato.compare import Evaluator, frechet_distance
from sfumato.compare.fidelity import psnr, recall
from sfumato.optimize.prompts import load_prompts, pick, shipped


@dataclass(frozen=True)
class Likeness:
    """Figures of some pictures; None: what takes a second picture, or others to hold them against.

    recall_1: share whose own prompt is the nearest of all. psnr, in dB, and distance, in the evaluator's
    features, are means over the pairs of pictures; frechet is the distance of the two sets.
    """

    recall_1: float | None
    psnr: float | None = None
    distance: float | None = None
    frechet: float | None = None


class Against:
    """The first pictures given, which the others are held against; prompts: what each of them shows."""

    def __init__(self, prompts: list[str]) -> None:
        self.prompts, self._evaluator = prompts, Evaluator()
        self._texts = self._evaluator.embed(prompts)
        self._first: Any = None

    def likeness(self, pictures: Any) -> Likeness:
        """pictures: uint8 [prompts, height, width, 3]."""
        seen, several = self._evaluator.read(pictures), len(self.prompts) > 1
        recall_1 = recall(seen.embedding, self._texts, self.prompts, 1) if several else None
        if self._first is None:
            self._first, self._seen = pictures, seen
            return Likeness(recall_1)
        near = mean_psnr(pictures, self._first)
        distance = float(np.mean(self._evaluator.distance(pictures, self._first)))
        frechet = frechet_distance(seen.features, self._seen.features) if several else None
        return Likeness(recall_1, near, distance, frechet)


def mean_psnr(pictures: Any, others: Any) -> float:
    """In dB, of the pairs of pictures."""
    return statistics.mean(psnr(*pair) for pair in zip(pictures, others, strict=True))


def prompts_of(artifact: Artifact, file: Path | None, count: int) -> list[str]:
    """So many of a file's prompts, one a line; without a file, of the captions that ship for a model."""
    captions = load_prompts(file) if file else shipped(artifact.manifest.captions)
    return pick(captions, count)
