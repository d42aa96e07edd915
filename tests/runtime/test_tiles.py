"""Tiles: every pixel is covered, shares are one together, and blending changes nothing by itself."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.runtime.tiles import OVERLAP, decode_tiles, starts, tile_shape, weights

SIZES = st.integers(1, 300)
TILES = st.integers(OVERLAP, 100)


@given(SIZES, TILES)
def test_tiles_cover_the_axis_with_enough_overlap(size, tile):
    begins = starts(size, tile)
    assert begins[0] == 0
    assert begins[-1] + tile == size or (begins == [0] and tile >= size)
    for begin, following in pairwise(begins):
        assert 0 < following - begin <= tile - tile // OVERLAP


@given(SIZES, TILES, st.sampled_from([1, 3, 8]))
def test_shares_are_one_together_everywhere(size, tile, factor):
    tile = min(size, tile)
    total = np.zeros(size * factor)
    for begin, share in zip(starts(size, tile), weights(size, tile, factor), strict=True):
        assert (share > 0).all()
        total[begin * factor : (begin + tile) * factor] += share
    np.testing.assert_allclose(total, 1, rtol=1e-6)


@given(st.integers(4, 200), st.integers(4, 200), st.integers(4, 60))
def test_a_tile_is_whole_up_to_the_area_and_never_larger_than_its_side(height, width, side):
    rows, columns = tile_shape(height, width, side)
    if height * width <= side**2:
        assert (rows, columns) == (height, width)
    else:
        assert (rows, columns) == (min(height, side), min(width, side))


def enlarged(latents: np.ndarray) -> np.ndarray:
    return latents.repeat(2, axis=2).repeat(2, axis=3)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(4, 16), st.integers(0, 2**32 - 1))
def test_a_decoder_that_looks_at_each_latent_alone_gives_the_same_in_tiles(height, width, side, seed):
    latents = np.random.default_rng(seed).uniform(-1, 1, (1, 3, height, width)).astype(np.float32)
    tile = tile_shape(height, width, side)
    shapes = set()

    def decode(part: np.ndarray) -> np.ndarray:
        shapes.add(part.shape)
        return enlarged(part)

    whole = decode_tiles(decode, latents, tile, 2)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, enlarged(latents), atol=1e-6)
    assert shapes == {(1, 3, *tile)}


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 4), (7, 5)])
def test_what_fits_in_one_tile_is_the_decoder_s_own(height, width):
    latents = np.random.default_rng(0).standard_normal((1, 3, height, width)).astype(np.float32)
    whole = decode_tiles(enlarged, latents, tile_shape(height, width, 16), 2)
    assert whole.tobytes() == enlarged(latents).tobytes()


def test_a_step_between_tiles_becomes_a_gradual_one():
    """Tiles that differ in brightness, as group normalisation makes them, meet without an edge."""
    brightness = iter([0.0, 1.0])
    latents = np.zeros((1, 1, 32, 48), np.float32)
    whole = decode_tiles(
        lambda part: np.full((1, 3, 32 * 8, 32 * 8), next(brightness), np.float32), latents, (32, 32), 8
    )
    assert (whole[0, 0, 0, 0], whole[0, 0, 0, -1]) == (0, 1)
    assert np.abs(np.diff(whole, axis=-1)).max() < 1.6 / (16 * 8)
