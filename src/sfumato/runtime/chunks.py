"""Encoded chunks of prompts: kept for the next prompt, weighted, and put together."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import numpy as np

from ..families import Array, Encoded

LIMIT = 64 * 2**20
"""Bytes of encodings to keep: 50 prompts of SDXL, or 12 of SD3 where T5 reads 256 tokens."""


class RecentChunks:
    """What encoders lately said about chunks, up to so many bytes; the least recently used goes first."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._bytes = 0
        self._chunks: OrderedDict[Hashable, Encoded] = OrderedDict()

    def get(self, key: Hashable) -> Encoded | None:
        """The encoding, which is then the most recently used."""
        if key in self._chunks:
            self._chunks.move_to_end(key)
        return self._chunks.get(key)

    def put(self, key: Hashable, encoded: Encoded) -> None:
        """Keep an encoding that is not kept yet; its arrays must not change any more."""
        self._chunks[key] = encoded
        self._bytes += _bytes(encoded)
        while self._bytes > self._limit:
            _, oldest = self._chunks.popitem(last=False)
            self._bytes -= _bytes(oldest)


def _bytes(encoded: Encoded) -> int:
    return sum(array.nbytes for array in encoded.values())


def assemble(chunks: Sequence[Encoded], weights: Array, empty: Encoded | None) -> dict[str, Array]:
    """One prompt's encoding: the states of its chunks one after the other, and the first one's pooled state.

    A token's weight moves its state along the line from the empty prompt's state in the same place:
    empty + weight * (state - empty). For weights of 1 and more the package `compel` does the same; for
    smaller ones it mixes in the states of a prompt without the words, where here the same line is followed,
    as ComfyUI does. States of weight 1 and the pooled state are left as they are.

    weights: [chunks, tokens]. empty: the encoding of the empty chunk; None where all weights are 1.
    """
    together = {
        key: np.concatenate([chunk[key] for chunk in chunks], axis=1) for key in chunks[0] if key != "pooled"
    }
    if empty is not None:
        places = np.flatnonzero(weights != 1)
        factors = weights.reshape(-1)[places, None]
        for key, states in together.items():
            base = empty[key][:, places % weights.shape[1]]
            states[:, places] = base + factors * (states[:, places] - base)
    if "pooled" in chunks[0]:
        together["pooled"] = chunks[0]["pooled"]
    return together
