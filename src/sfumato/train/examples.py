"""Pictures to train on, as latents with captions: the rendered set, or a folder of one's own."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from sfumato.errors import InvalidRequest
from sfumato.files import write_errors
from sfumato.train.embedded import captions, dataset
from sfumato.train.embedded.latents import cached_latents
from sfumato.train.metadata import EXAMPLE, JSON_LINES, TABLE, find_metadata, read_metadata
from sfumato.train.pictures import open_pictures
from sfumato.train.processes import is_main, one_at_a_time

_log = logging.getLogger(__name__)

COMMON_SHARE = 0.5


class Examples(Protocol):
    """Training pictures."""

    def draw(self, size: int, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
        """Scaled latents (float32 [size, channels, height, width]) and captions: a function of `rng`."""


@dataclass(frozen=True)
class RecordExamples:
    """The rendered set: scaled latents (float32 [n, channels, height, width]), records, and chances."""

    latents: Tensor
    records: list[dataset.Record]
    chances: np.ndarray

    def draw(self, size: int, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
        """Latents and newly drawn captions of `size` pictures."""
        picks = rng.choice(len(self.records), size, p=self.chances)
        return self.latents[picks], [captions.caption(self.records[i], rng) for i in picks]


def open_examples(
    data: Path,
    vae: Any,
    out: Path,
    *,
    side: int | None = None,
    mirror: bool = True,
    say: Callable[[str], None] = print,
) -> Examples:
    """The training pictures of the folder `data`; their latents are kept in `out`.

    data: what `sfumato train embedded data` made (its training split is taken, as it is), or pictures with a
        `metadata.jsonl` or `metadata.csv`.
    side: of the squares that these are brought to, in pixels; the VAE's own where None. The rendered set has
        one of its own, and a warning tells where it is another.
    mirror: whether these are shown mirrored too.

    Of several processes one encodes while the others wait. Raises InvalidRequest for a folder without
    captions, for captions or pictures that cannot be used, and for a side that the VAE does not take.
    """
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(out):
        if (data / dataset.RECORDS).exists() or (data / dataset.CHECKSUM).exists():
            return _open_records(data, vae, out, side)
        if not data.is_dir():
            raise InvalidRequest(f"{data}: no such folder of pictures")
        metadata = find_metadata(data)
        if metadata is None:
            raise InvalidRequest(
                f"{data}: has neither {JSON_LINES} nor {TABLE}, which tell the pictures' captions; a line of "
                f"{JSON_LINES} is {EXAMPLE} (sfumato train embedded data makes a set of another kind)"
            )
        return open_pictures(read_metadata(metadata), vae, out, side, mirror, say)


def _open_records(data: Path, vae: Any, out: Path, side: int | None) -> RecordExamples:
    pictures, records = dataset.load(data)
    if side not in (None, dataset.SIDE) and is_main():
        _log.warning(
            "%s: pictures of %dx%d for a model of %dx%d, which may unlearn its size; give pictures as large",
            data,
            *(dataset.SIDE, dataset.SIDE, side, side),
        )
    rows = dataset.indices(records, "train")
    records = [records[i] for i in rows]
    latents = cached_latents(vae, pictures, rows, out)
    return RecordExamples(latents, records, captions.weights(records, COMMON_SHARE))
