"""Look-alikes in the training set: one weight among them, and one side of the split."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sfumato.train.embedded.dataset import Record

ALIKE = 1


def balance(records: "list[Record]", pictures: np.ndarray) -> "list[Record]":
    """Share one weight among the pictures of a style that look alike, and keep them on one side of the split.

    Alike: the mean difference of the 16x16 reductions is below one of 256 levels (aliases, and variants that
    differ in a few pixels). Where one of them is trained on, all are; a concept that comes into training so
    is no longer held out as a concept: its other pictures are pairs of style and concept.
    """
    side = pictures.shape[1]
    cells = pictures.reshape(len(pictures), 16, side // 16, 16, side // 16, 3)
    small = cells.sum((2, 4), dtype=np.int32).reshape(len(pictures), -1)
    balanced = list(records)
    for style in sorted({record.style for record in records}):
        rows = [i for i, r in enumerate(records) if r.style == style and r.background == "white"]
        for cluster in _clusters(small[rows], (side // 16) ** 2):
            members = [rows[i] for i in cluster]
            splits = {records[i].split for i in members}
            for i in members:
                split = "train" if "train" in splits else records[i].split
                balanced[i] = replace(records[i], weight=1 / len(members), split=split)
    trained = {record.concept for record in balanced if record.split == "train"}
    return [
        replace(record, split="pair") if record.split == "concept" and record.concept in trained else record
        for record in balanced
    ]


def _clusters(rows: np.ndarray, pixels: int) -> list[list[int]]:
    """Connected groups of two or more rows (int32 [n, cells], sums over `pixels` each) that are alike."""
    group = np.arange(len(rows))
    limit = ALIKE * pixels * rows.shape[1]
    for i, row in enumerate(rows):
        near = np.flatnonzero(np.abs(rows[i + 1 :] - row).sum(1) < limit) + i + 1
        for j in near:
            group[group == group[j]] = group[i]
    return [np.flatnonzero(group == g).tolist() for g in np.unique(group) if (group == g).sum() > 1]
