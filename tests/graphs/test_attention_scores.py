"""Scores in 8 bits: close to attention as it was, however large heads are, and only where it pays."""

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from sfumato.graphs.attention_scores import round_scores

HEADS, WIDTH, TOKENS = 3, 8, 64
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


def attention(queries=TOKENS, keys=TOKENS, *, width=WIDTH, heads_first=False, masked=False):
    """A model of attention, of inputs [batch, tokens, heads, width] or with heads before tokens."""
    counts = (queries, keys, keys)
    shapes = [[2, HEADS, count, width] if heads_first else [2, count, HEADS, width] for count in counts]
    given = [ops.parameter(shape, np.float32) for shape in shapes]
    order = np.array([0, 2, 1, 3])
    inputs = given if heads_first else [ops.transpose(each, order) for each in given]
    if masked:
        inputs.append(ops.constant(np.zeros((queries, keys), np.float32)))
    return ov.Model([ops.result(ops.scaled_dot_product_attention(*inputs))], given)


def inputs_of(model, sizes=(1.0, 1.0, 1.0), offset=0.0):
    generator = np.random.default_rng(0)
    drawn = [generator.standard_normal(port.get_shape()).astype(np.float32) for port in model.inputs]
    for each in drawn[:2]:
        each *= np.array(sizes, np.float32)[:, None]
    drawn[1] += np.float32(offset) * generator.standard_normal((1, 1, HEADS, WIDTH)).astype(np.float32)
    return drawn


def run(model, inputs):
    return ov.Core().compile_model(model, "CPU", EXACT)(inputs)[0]


def types_of(model):
    return {op.get_type_name() for op in model.get_ordered_ops()}


@pytest.mark.parametrize("sizes", [(1, 1, 1), (0.01, 1, 2), (0, 1, 1)])
@pytest.mark.parametrize("offset", [0, 20])
def test_it_is_close_for_every_head(sizes, offset):
    inputs = inputs_of(attention(), sizes, offset)
    expected = run(attention(), inputs)
    model = attention()
    assert round_scores(model, least=TOKENS) == 1
    assert "ScaledDotProductAttention" not in types_of(model)
    error = np.square(run(model, inputs) - expected).mean((0, 2, 3))
    assert (error < 1e-3 * np.square(expected).mean((0, 2, 3))).all()
    assert error.max() > 0


@pytest.mark.parametrize(
    "changed",
    [{"queries": TOKENS - 1}, {"keys": TOKENS - 1}, {"width": 161}, {"heads_first": True}, {"masked": True}],
)
def test_other_attention_stays(changed):
    model = attention(**changed)
    assert round_scores(model, least=TOKENS) == 0
    assert "ScaledDotProductAttention" in types_of(model)


def test_unknown_sizes_stay(artifacts):
    model = ov.Core().read_model(artifacts("sd") / "unet" / "openvino_model.xml")
    assert round_scores(model, least=1) == 0


def denoiser(artifacts):
    """A UNet with static sizes, as `round_scores` needs it."""
    model = ov.Core().read_model(artifacts("sd") / "unet" / "openvino_model.xml")
    sizes = {1: [2], 3: [2, 7, -1], 4: [2, -1, 16, 16]}
    for port in model.inputs:
        shape = port.get_partial_shape()
        own = [length.get_length() if length.is_static else -1 for length in shape]
        model.reshape(
            {
                port.any_name: [
                    size if known == -1 else known for known, size in zip(own, sizes[len(own)], strict=True)
                ]
            }
        )
    return model


def test_a_network_stays_close(artifacts):
    model = denoiser(artifacts)
    generator = np.random.default_rng(0)
    inputs = {
        port.any_name: np.array([500, 500])
        if "timestep" in port.get_names()
        else generator.standard_normal(port.get_shape()).astype(np.float32)
        for port in model.inputs
    }
    expected = run(model.clone(), inputs)
    attentions = [op for op in model.get_ordered_ops() if op.get_type_name() == "ScaledDotProductAttention"]
    alone = [op for op in attentions if op.get_input_shape(1)[2] != 7]
    assert 0 < round_scores(model, least=8) <= len(alone)
    error = np.square(run(model, inputs) - expected).mean() / np.square(expected).mean()
    assert 0 < error < 1e-3
