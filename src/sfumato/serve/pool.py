"""Pipelines that stay loaded between generations, as far as memory goes."""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifact import Artifact
from ..runtime.memory import PER_PIXEL, PER_WEIGHT, available, weights
from ..runtime.pipeline import Pipeline

MOST_IDLE = 4
"""Pipelines that are kept though nobody uses them."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """A model, and the share of its tokens to merge."""

    artifact: Artifact
    token_merging: float | None = None

    def is_met_by(self, other: "Wanted") -> bool:
        """Whether a pipeline of the other one does: of the same folder, as its manifest is now."""
        mine, theirs = self.artifact, other.artifact
        same = mine.path.resolve() == theirs.path.resolve() and self.token_merging == other.token_merging
        return same and mine.manifest == theirs.manifest


class Pool:
    """Lends pipelines, each to one at a time.

    options: for `Pipeline.load`. Idle pipelines are let go, the longest unused first, where there are more
    than MOST_IDLE or another one needs their memory.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        self._idle: list[tuple[Wanted, Pipeline]] = []
        self._lock = threading.Lock()

    @contextmanager
    def borrowed(self, wanted: Sequence[Wanted]) -> Iterator[list[Pipeline]]:
        """Pipelines for the block, loaded where none is idle."""
        taken: list[tuple[Wanted, Pipeline]] = []
        try:
            for each in wanted:
                others = [other.artifact.path for other in wanted if other is not each]
                taken.append((each, self._take(each) or self._load(each, others)))
            yield [pipeline for _, pipeline in taken]
        finally:
            with self._lock:
                self._idle += taken
                spare = self._idle[:-MOST_IDLE]
                del self._idle[:-MOST_IDLE]
            _release(spare)

    def close(self) -> None:
        """Let go of all idle pipelines."""
        with self._lock:
            spare, self._idle = self._idle, []
        _release(spare)

    def _take(self, wanted: Wanted) -> Pipeline | None:
        with self._lock:
            for index, (known, pipeline) in enumerate(self._idle):
                if wanted.is_met_by(known):
                    del self._idle[index]
                    return pipeline
        return None

    def _load(self, wanted: Wanted, others: Sequence[Path]) -> Pipeline:
        self._make_room(wanted.artifact)
        return Pipeline.load(
            wanted.artifact.path, token_merging=wanted.token_merging, beside=others, **self._options
        )

    def _make_room(self, artifact: Artifact) -> None:
        width, height = artifact.manifest.latents.default_size
        needed = PER_WEIGHT * weights(artifact) + PER_PIXEL * width * height
        while (free := available()) is not None and free < needed:
            with self._lock:
                spare, self._idle = self._idle[:1], self._idle[1:]
            if not spare:
                return
            _log.info("letting go of %s to load %s", spare[0][0].artifact.path, artifact.path)
            _release(spare)


def _release(pipelines: list[tuple[Wanted, Pipeline]]) -> None:
    for _, pipeline in pipelines:
        pipeline.release()
