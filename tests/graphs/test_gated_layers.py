"""Gated layers apart: the same values, and no operation that one thread cannot run."""

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from sfumato.graphs.gated_layers import part_gated_layers

WIDTH, HIDDEN = 288, 320


def linear(x: Any, inputs: int, outputs: int) -> Any:
    weight = np.random.default_rng(outputs).standard_normal((outputs, inputs), np.float32) / inputs**0.5
    return ops.matmul(x, ops.convert(ops.constant(weight.astype(np.float16)), "f32"), False, True)


@pytest.fixture
def gated() -> Any:
    x = ops.parameter([1, 16, WIDTH], ov.Type.f32, name="x")
    gate = ops.gelu(linear(x, WIDTH, HIDDEN), "tanh")
    return ov.Model([linear(ops.multiply(gate, linear(x, WIDTH, HIDDEN)), HIDDEN, WIDTH)], [x])


def run(model: Any, **options: Any) -> Any:
    x = np.random.default_rng(0).standard_normal((1, 16, WIDTH), np.float32)
    return ov.Core().compile_model(model, "CPU", options)([x])[0]


def test_values_stay(gated):
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    before = run(gated.clone(), **exact)
    assert part_gated_layers(gated) == 1
    np.testing.assert_array_equal(run(gated, **exact), before)


def test_one_thread_is_enough(gated):
    """Where a processor has AMX, the process would end here."""
    expected = run(gated.clone(), INFERENCE_PRECISION_HINT="f32")
    part_gated_layers(gated)
    result = run(gated, INFERENCE_NUM_THREADS=1)
    np.testing.assert_allclose(result, expected, atol=0.05)
    compiled = ov.Core().compile_model(gated, "CPU")
    kinds = {op.get_rt_info()["layerType"].value for op in compiled.get_runtime_model().get_ops()}
    assert "LLMMLP" not in kinds


def test_other_products_are_left():
    x = ops.parameter([1, 16, WIDTH], ov.Type.f32, name="x")
    alone = ops.multiply(linear(x, WIDTH, HIDDEN), ops.constant(np.float32(2)))
    assert part_gated_layers(ov.Model([alone], [x])) == 0
