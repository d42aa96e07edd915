"""Decoding and encoding in overlapping tiles of one shape, blended so that no seam shows."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from ..families import Array

OVERLAP = 4
"""Neighbouring tiles share at least 1/OVERLAP of their side."""


def tile_shape(height: int, width: int, side: int) -> tuple[int, int]:
    """The one shape of all tiles over `height` x `width`, whole up to an area of `side` x `side`."""
    return (height, width) if height * width <= side**2 else (min(height, side), min(width, side))


def starts(size: int, tile: int) -> list[int]:
    """Where tiles begin along an axis: as few as overlap enough, spread evenly between the edges."""
    if size <= tile:
        return [0]
    gaps = -(-(size - tile) // (tile - tile // OVERLAP))
    return [(size - tile) * index // gaps for index in range(gaps + 1)]


def weights(size: int, tile: int, factor: int) -> Array:
    """Each tile's share in the pixels it covers along an axis, [tiles, tile * factor]; together they are one.

    Smooth ramps as wide as the overlap, but none at the outer edges. factor: pixels for each latent.
    """
    begins, side = [start * factor for start in starts(size, tile)], tile * factor
    shares = np.ones((len(begins), side))
    distance = np.arange(side) + 0.5
    for index, (begin, following) in enumerate(pairwise(begins)):
        ramp = np.minimum(1, distance / (side - (following - begin)))
        # Level at both ends: with linear ramps a tile's edge, decoded out of context, shows as a faint line.
        ramp *= ramp * (3 - 2 * ramp)
        shares[index] = np.minimum(shares[index], ramp[::-1])
        shares[index + 1] = np.minimum(shares[index + 1], ramp)
    total = np.zeros(size * factor)
    for begin, share in zip(begins, shares, strict=True):
        total[begin : begin + side] += share
    return np.stack(
        [share / total[begin : begin + side] for begin, share in zip(begins, shares, strict=True)]
    ).astype(np.float32)


def decode_tiles(
    decode: Callable[[Array], Array], latents: Array, tile: tuple[int, int], factor: int
) -> Array:
    """Decode latents [1, channels, height, width] to [1, 3, height * factor, width * factor] in tiles.

    decode: does it for one tile, and alone where the tile is the whole.
    """
    return _tiled(decode, latents, tile, 1, factor)


def encode_tiles(
    encode: Callable[[Array], Array], pixels: Array, tile: tuple[int, int], factor: int
) -> Array:
    """Encode pixels [1, 3, height * factor, width * factor] to [1, channels, height, width] in tiles.

    tile: its sides in latents. encode: does it for one tile, and alone where the tile is the whole.
    """
    return _tiled(encode, pixels, tile, factor, 1)


def _tiled(
    run: Callable[[Array], Array], source: Array, tile: tuple[int, int], given: int, made: int
) -> Array:
    """given, made: how many values along a side the source and the result have for a latent."""
    height, width = (side // given for side in source.shape[-2:])
    if tile == (height, width):
        return run(source)
    (rows, columns), whole = tile, None
    for top, down in zip(starts(height, rows), weights(height, rows, made), strict=True):
        for left, across in zip(starts(width, columns), weights(width, columns, made), strict=True):
            part = source[..., top * given : (top + rows) * given, left * given : (left + columns) * given]
            result = run(part) * np.outer(down, across)
            if whole is None:
                whole = np.zeros((*result.shape[:2], height * made, width * made), np.float32)
            y, x = top * made, left * made
            whole[..., y : y + rows * made, x : x + columns * made] += result
    assert whole is not None
    return whole
