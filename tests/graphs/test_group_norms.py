"""Group normalization in steps: the same numbers, also where means are large and bfloat16 is short."""

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from sfumato.graphs.group_norms import unfold_group_norms

CHANNELS, GROUPS = 24, 4


def options(precision):
    return {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}


def norm_of(pictures, groups=GROUPS):
    generator = np.random.default_rng(1)
    weights, bias = generator.standard_normal((2, CHANNELS)).astype(np.float32)
    return ops.group_normalization(pictures, ops.constant(weights), ops.constant(bias), groups, 1e-5)


def model_of(embedded=False, groups=GROUPS):
    """A normalization, of pictures or of their sum with a number for each channel."""
    pictures = ops.parameter([-1, CHANNELS, -1, -1], np.float32)
    embedding = ops.parameter([-1, CHANNELS, 1, 1], np.float32)
    if not embedded:
        return ov.Model([ops.result(norm_of(pictures, groups))], [pictures])
    return ov.Model([ops.result(norm_of(ops.add(pictures, embedding), groups))], [pictures, embedding])


def run(model, inputs, precision="f32"):
    return ov.Core().compile_model(model, "CPU", options(precision))(inputs)[0]


def types_of(model):
    return {op.get_type_name() for op in model.get_ordered_ops()}


def pictures_of(height, width, offset=0.0):
    generator = np.random.default_rng(0)
    offsets = offset * generator.standard_normal((1, CHANNELS, 1, 1))
    return (generator.standard_normal((2, CHANNELS, height, width)) + offsets).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (16, 16)])
@pytest.mark.parametrize("groups", [1, 4, CHANNELS])
def test_it_is_the_same_normalization(height, width, groups):
    pictures = pictures_of(height, width, offset=2)
    expected = run(model_of(groups=groups), [pictures])
    unfolded = model_of(groups=groups)
    assert unfold_group_norms(unfolded) == 1
    assert "GroupNormalization" not in types_of(unfolded)
    np.testing.assert_allclose(run(unfolded, [pictures]), expected, atol=1e-3, rtol=1e-4)


def test_an_embedding_is_added_to_the_means_alone():
    pictures, embedding = pictures_of(7, 9), 3 * pictures_of(1, 1)
    expected = run(model_of(embedded=True), [pictures, embedding])
    unfolded = model_of(embedded=True)
    unfold_group_norms(unfolded)
    np.testing.assert_allclose(run(unfolded, [pictures, embedding]), expected, atol=1e-4, rtol=1e-4)
    unfolded.reshape({0: [2, CHANNELS, 7, 9], 1: [2, CHANNELS, 1, 1]})
    compiled = ov.Core().compile_model(unfolded, "CPU", options("f32"))
    np.testing.assert_allclose(compiled([pictures, embedding])[0], expected, atol=1e-4, rtol=1e-4)


def test_what_else_reads_the_sum_keeps_it():
    model = model_of(embedded=True)
    total = next(op for op in model.get_ordered_ops() if op.get_type_name() == "Add")
    model.add_results([ops.result(total)])
    inputs = [pictures_of(4, 4), pictures_of(1, 1)]
    expected = ov.Core().compile_model(model.clone(), "CPU", options("f32"))(inputs)
    unfold_group_norms(model)
    found = ov.Core().compile_model(model, "CPU", options("f32"))(inputs)
    for port in (0, 1):
        np.testing.assert_allclose(found[port], expected[port], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("offset", [0, 10, 100])
def test_bfloat16_loses_no_more_than_before(offset):
    pictures = pictures_of(16, 16, offset)
    expected = run(model_of(), [pictures])
    unfolded = model_of()
    unfold_group_norms(unfolded)
    before = np.abs(run(model_of(), [pictures], "bf16") - expected).mean()
    after = np.abs(run(unfolded, [pictures], "bf16") - expected).mean()
    assert after <= 1.5 * before + 0.005


def test_other_ranks_stay():
    values = ops.parameter([-1, CHANNELS, -1], np.float32)
    model = ov.Model([ops.result(norm_of(values))], [values])
    assert unfold_group_norms(model) == 0
    assert "GroupNormalization" in types_of(model)
