"""Only graphs with 8-bit activations are made fit for processors."""

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from sfumato.graphs.processors import fit_processor

CHANNELS, TOKENS = 8, 1024


def model_of(rounded):
    """A normalization and an attention on the pixels of what it gives."""
    pictures = ops.parameter([1, CHANNELS, 32, 32], np.float32)
    ones, zeros = (ops.constant(np.full(CHANNELS, value, np.float32)) for value in (1, 0))
    normed = ops.group_normalization(pictures, ones, zeros, 2, 1e-5)
    if rounded:
        limits = [ops.constant(np.full((1, 1, 1, 1), limit, np.float32)) for limit in (-4, 4, -4, 4)]
        normed = ops.fake_quantize(normed, *limits, 256)
    tokens = ops.reshape(normed, np.array([1, 2, CHANNELS // 2, TOKENS]), False)
    tokens = ops.transpose(tokens, np.array([0, 3, 1, 2]))
    heads = ops.transpose(tokens, np.array([0, 2, 1, 3]))
    return ov.Model([ops.result(ops.scaled_dot_product_attention(heads, heads, heads))], [pictures])


def types_of(model):
    return {op.get_type_name() for op in model.get_ordered_ops()}


@pytest.mark.parametrize("rounded", [True, False])
def test_floating_point_stays_as_it_is(rounded):
    model = model_of(rounded)
    before = types_of(model)
    fit_processor(model)
    assert {"GroupNormalization", "ScaledDotProductAttention"} <= before
    assert ({"GroupNormalization", "ScaledDotProductAttention"} & types_of(model) == set()) == rounded
    assert (types_of(model) == before) != rounded


def test_what_it_computes_stays_close():
    pictures = np.random.default_rng(0).standard_normal((1, CHANNELS, 32, 32)).astype(np.float32)
    fit = model_of(rounded=True)
    fit_processor(fit)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    expected, found = (
        ov.Core().compile_model(model, "CPU", options)([pictures])[0] for model in (model_of(True), fit)
    )
    assert np.square(found - expected).mean() < 1e-3 * np.square(expected).mean()
