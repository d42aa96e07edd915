"""Grids hold zero and what was seen; smoothing is exact but for the rounding; "auto" errs least."""

import handmade
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.optimize.ranges import STRENGTHS, choose, quantize_weights

seeds = st.integers(0, 2**32)
shifts = st.sampled_from([0.0, -5.0, 5.0, 300.0, -300.0])
outliers = st.sampled_from([1.0, 100.0, 1e4])
smooth = st.sampled_from([None, 0.5, 1.0, "auto"])


def draw(seed, shift=0.0, outlier=1.0, channels=16, dead=0):
    """Rows that layers read, of channels of differing sizes, and weights [outputs, taps, inputs]."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((40, channels)) * np.exp(rng.standard_normal(channels)) + shift
    rows[:, 0] *= outlier
    rows[:, channels - dead :] = 0
    weights = [
        rng.standard_normal((outputs, taps, channels)) * np.exp(rng.standard_normal(channels))
        for outputs, taps in ((24, 1), (8, 9))
    ]
    return rows.astype(np.float32), [each.astype(np.float32) for each in weights]


@settings(deadline=None, max_examples=100)
@given(seed=seeds, shift=shifts, outlier=outliers, strength=smooth, dead=st.integers(0, 16))
def test_zero_is_a_level_and_what_was_seen_is_covered(seed, shift, outlier, strength, dead):
    rows, weights = draw(seed, shift, outlier, dead=dead)
    grid = choose(handmade.statistics(rows), weights, strength)
    assert grid.step > 0
    zero = -grid.low / grid.step
    assert abs(zero - round(zero)) < 1e-3
    assert 0 <= round(zero) <= 255
    assert np.abs(grid.rounded(np.zeros_like(rows[:1]))).max() < 1e-3 * grid.step
    scaled = rows / grid.scales
    assert (np.abs(grid.rounded(rows) - scaled) <= grid.step * 1.01 + 1e-5 * np.abs(scaled)).all()


@settings(deadline=None, max_examples=50)
@given(seed=seeds, outlier=outliers, strength=st.floats(0, 1), dead=st.integers(0, 16))
def test_smoothing_leaves_the_product(seed, outlier, strength, dead):
    rows, weights = draw(seed, outlier=outlier, dead=dead)
    grid = choose(handmade.statistics(rows), weights, strength)
    assert np.isfinite(grid.scales).all()
    assert (grid.scales > 0).all()
    for each in weights:
        matrix = each.reshape(-1, each.shape[2])
        exact = rows.astype(np.float64) @ matrix.T
        smoothed = (rows / grid.scales).astype(np.float64) @ (matrix * grid.scales).T
        np.testing.assert_allclose(smoothed, exact, rtol=1e-4, atol=1e-5 * np.abs(exact).max(initial=1))


def output_error(rows, weights, grid):
    """Written out anew: the squared change of all outputs that rounding both sides makes."""
    total = 0.0
    for each in weights:
        smoothed = each * grid.scales
        steps = np.abs(smoothed).reshape(len(each), -1).max(1)[:, None, None] / 127
        restored = np.round(smoothed / steps) * steps
        step = (grid.high - grid.low) / 255
        inputs = np.round(np.clip(rows / grid.scales, grid.low, grid.high) / step) * step
        for tap in range(each.shape[1]):
            change = inputs @ restored[:, tap].T - rows @ each[:, tap].T
            total += float(np.square(change.astype(np.float64)).sum())
    return total


@settings(deadline=None, max_examples=30)
@given(seed=seeds, outlier=outliers)
def test_auto_is_the_best_of_its_strengths(seed, outlier):
    rows, weights = draw(seed, outlier=outlier)
    seen = handmade.statistics(rows)
    chosen = output_error(rows, weights, choose(seen, weights, "auto"))
    others = [output_error(rows, weights, choose(seen, weights, strength)) for strength in STRENGTHS]
    assert chosen == pytest.approx(min(others), rel=1e-2)


def test_auto_smooths_an_outlier_away_and_leaves_even_channels():
    rows, weights = draw(1, outlier=1e3)
    grid = choose(handmade.statistics(rows), weights, "auto")
    assert (grid.scales != 1).any()
    plain = choose(handmade.statistics(rows), weights, None)
    assert output_error(rows, weights, grid) < 0.2 * output_error(rows, weights, plain)
    even = np.random.default_rng(0).uniform(-1, 1, (40, 16)).astype(np.float32)
    flat = [np.random.default_rng(1).choice([-1, 1], (24, 1, 16)).astype(np.float32)]
    grid = choose(handmade.statistics(even), flat, "auto")
    np.testing.assert_allclose(grid.scales, 1, atol=0.05)


def test_nothing_and_one_value_alone():
    _, weights = draw(0)
    for value in (0.0, -3.0, 3.0):
        rows = np.full((4, 16), value, np.float32)
        for strength in (None, 0.5, "auto"):
            grid = choose(handmade.statistics(rows), weights, strength)
            np.testing.assert_allclose(grid.rounded(rows), rows / grid.scales, atol=grid.step)


def test_channels_in_which_nothing_flows_keep_their_scale():
    rows, weights = draw(0, dead=4)
    weights[0][:, :, 3] = weights[1][:, :, 3] = 0
    grid = choose(handmade.statistics(rows), weights, 0.5)
    np.testing.assert_array_equal(grid.scales[[3, 12, 13, 14, 15]], 1)
    assert (grid.scales[:3] != 1).all()


@settings(deadline=None, max_examples=50)
@given(seed=seeds, size=st.sampled_from([0.0, 1e-9, 0.02, 1.0, 1e4]))
def test_weights_are_within_half_a_step(seed, size):
    weights = draw(seed)[1][1] * np.float32(size)
    weights[0] = 0
    integers, steps = quantize_weights(weights)
    assert steps.shape == (len(weights), 1, 1)
    assert np.abs(integers).max() <= 127
    np.testing.assert_array_equal(integers, np.rint(integers))
    assert (np.abs(integers * steps - weights) <= steps * 0.5001).all()
