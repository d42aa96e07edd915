"""Doubling and convolution as one transposed convolution: the same result, where it may be."""

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from sfumato.graphs.upsampling import LEAST_PRODUCTS, transpose_upsampling

CHANNELS, OUTPUTS = 6, 5
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def model(
    low: float = -128 / 32,
    high: float = 127 / 32,
    mode: str = "nearest",
    factor: float = 2.0,
    kernel: int = 3,
    whole: bool = True,
    scales: float = 1.0,
    halves: bool = False,
) -> Any:
    """A picture, enlarged, rounded to 8 bits, and convolved; the scale and a bias for each channel."""
    rng = np.random.default_rng(3)
    given = ops.parameter([1, CHANNELS, 4, 5], ov.Type.f32, name="x")
    sizes = np.float32([factor, factor])
    large = ops.interpolate(
        given,
        sizes,
        mode,
        "scales",
        axes=np.array([2, 3]),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    one = np.ones((1, CHANNELS, 1, 1), np.float32)
    by_channel = np.linspace(1, scales, CHANNELS, dtype=np.float32).reshape(one.shape)
    limits = [by_channel * low, by_channel * high, np.full((1, 1, 1, 1), low), np.full((1, 1, 1, 1), high)]
    rounded = ops.fake_quantize(large, *(_stored(limit, halves) for limit in limits), 256)
    integers = rng.integers(-127, 128, (OUTPUTS, CHANNELS, kernel, kernel), np.int8)
    step = rng.uniform(0.001, 0.002, (OUTPUTS, 1, 1, 1)).astype(np.float32)
    weights = ops.multiply(ops.convert(ops.constant(integers), "f32"), ops.constant(step))
    plain = ops.constant(integers.astype(np.float32) * step)
    pads = [kernel // 2] * 2
    result = ops.convolution(rounded, weights if whole else plain, [1, 1], pads, pads, [1, 1])
    return ov.Model([ops.add(result, rng.standard_normal((1, OUTPUTS, 1, 1)).astype(np.float32))], [given])


def _stored(limit: Any, halves: bool) -> Any:
    """A constant as a model in 16 bits has it, or as it is."""
    if halves:
        return ops.convert(ops.constant(np.asarray(limit, np.float16)), "f32")
    return ops.constant(np.asarray(limit, np.float32))


def run(graph: Any, x: np.ndarray) -> np.ndarray:
    return np.asarray(ov.Core().compile_model(graph, "CPU", EXACT)(x)[0])


def picture() -> np.ndarray:
    return np.random.default_rng(1).uniform(-4, 4, (1, CHANNELS, 4, 5)).astype(np.float32)


@pytest.mark.parametrize("scales", [1.0, 3.0])
def test_the_result_is_the_same_but_for_rounding(scales: float) -> None:
    changed = model(scales=scales)
    assert transpose_upsampling(changed, 0) == 1
    assert "Interpolate" not in [op.get_type_name() for op in changed.get_ops()]
    expected, found = run(model(scales=scales), picture()), run(changed, picture())
    assert found.shape == (1, OUTPUTS, 8, 10)
    # Weights' steps are at most 4 times larger; each of 6 * 16 products is off by half a step at most.
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9995


def test_limits_may_be_stored_in_16_bits() -> None:
    changed = model(halves=True)
    assert transpose_upsampling(changed, 0) == 1
    expected, found = run(model(halves=True), picture()), run(changed, picture())
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9995


def test_limits_that_are_computed_stay() -> None:
    graph = model()
    (rounding,) = [op for op in graph.get_ops() if op.get_type_name() == "FakeQuantize"]
    rounding.input(1).replace_source_output(ops.negative(rounding.input_value(2)).output(0))
    assert transpose_upsampling(graph, 0) == 0


def test_a_grid_a_little_off_is_moved_to_have_no_zero_point() -> None:
    changed = model(low=-127 / 32, high=128 / 32)
    assert transpose_upsampling(changed, 0) == 1
    (rounding,) = [op for op in changed.get_ops() if op.get_type_name() == "FakeQuantize"]
    low, high = (float(rounding.input_value(port).get_node().data.item()) for port in (3, 4))
    assert low / high == pytest.approx(-128 / 127)
    assert high >= 128 / 32
    expected, found = run(model(low=-127 / 32, high=128 / 32), picture()), run(changed, picture())
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9995


@pytest.mark.parametrize(
    "other",
    [
        {"low": -1.0, "high": 4.0},
        {"low": 0.0, "high": 4.0},
        {"mode": "linear"},
        {"factor": 3.0},
        {"kernel": 1},
        {"whole": False},
    ],
    ids=str,
)
def test_what_would_not_be_the_same_or_not_faster_stays(other: dict[str, Any]) -> None:
    graph = model(**other)
    assert transpose_upsampling(graph, 0) == 0
    assert "Interpolate" in [op.get_type_name() for op in graph.get_ops()]


def test_small_ones_stay() -> None:
    assert transpose_upsampling(model()) == 0
    assert 4 * 5 * CHANNELS * OUTPUTS * 9 < LEAST_PRODUCTS
