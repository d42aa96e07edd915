"""Graphs with fewer copies: what they compute stays, and rounding comes before tokens become a picture."""

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from sfumato.graphs.channels_last import keep_channels_last, quantize_before_transposes

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
CHANNELS = 8
SCALES = np.linspace(0.5, 2, CHANNELS, dtype=np.float32).reshape(1, CHANNELS, 1, 1)
ONE = np.ones((1, 1, 1, 1), np.float32)


def run(model, inputs):
    return ov.Core().compile_model(model, "CPU", EXACT)(inputs)[0]


def rounded(limits, order=(0, 3, 1, 2)):
    """A model that makes tokens of a grid a picture, and rounds it: limits as FakeQuantize takes them."""
    tokens = ops.parameter([-1, -1, -1, CHANNELS], np.float32)
    picture = ops.transpose(tokens, np.array(order, np.int64))
    constants = [ops.constant(np.asarray(limit, np.float32)) for limit in limits]
    quantizer = ops.fake_quantize(picture, *constants, 256)
    quantizer.set_friendly_name("rounding")
    return ov.Model([ops.result(quantizer)], [tokens])


def drawn(height=5, width=3):
    return np.random.default_rng(0).standard_normal((2, height, width, CHANNELS)).astype(np.float32)


def before(model, name):
    node = next(op for op in model.get_ordered_ops() if op.get_friendly_name() == name)
    return node.input_value(0).get_node().get_type_name()


@pytest.mark.parametrize(
    "limits",
    [
        (-2 * SCALES, 3 * SCALES, -2 * ONE, 3 * ONE),  # evened out by channel, as by SmoothQuant
        (-2 * ONE, 3 * ONE, -2 * ONE, 3 * ONE),
        (0 * SCALES, 3 * SCALES, 0 * ONE, 3 * ONE),
    ],
)
def test_rounding_comes_first_and_gives_the_same(limits):
    model = rounded(limits)
    expected = run(model.clone(), [drawn()])
    assert quantize_before_transposes(model) == 1
    assert before(model, "rounding") != "Transpose"
    step = (limits[3] - limits[2]).max() / 255
    difference = np.abs(run(model, [drawn()]) - expected)
    assert difference.max() <= step * 1.001  # where a value lies on the border between two levels
    assert (difference > step / 2).mean() < 0.01


@pytest.mark.parametrize(
    ("limits", "order"),
    [
        ((-2 * SCALES, 3 * ONE * SCALES + 1, -2 * ONE, 3 * ONE), (0, 3, 1, 2)),  # no multiple of one grid
        ((-2 * SCALES, 3 * SCALES, -2 * SCALES, 3 * SCALES), (0, 3, 1, 2)),  # a grid for each channel
        ((-2 * ONE, 3 * ONE, -2 * ONE, 3 * ONE), (0, 3, 2, 1)),
    ],
)
def test_what_is_another_thing_stays(limits, order):
    model = rounded(limits, order)
    assert quantize_before_transposes(model) == 0
    assert before(model, "rounding") == "Transpose"


@pytest.mark.parametrize(("name", "component"), [("sd", "unet"), ("sdxl", "unet"), ("sd", "vae_decoder")])
def test_a_network_stays_the_same(artifacts, name, component):
    model = ov.Core().read_model(artifacts(name) / component / "openvino_model.xml")
    generator = np.random.default_rng(0)
    inputs = {}
    for port in model.inputs:
        shape = [length.get_length() if length.is_static else None for length in port.get_partial_shape()]
        defaults = {1: [2], 2: [2, None], 3: [2, 7, None], 4: [2, None, 12, 20]}[len(shape)]
        full = [own or default for own, default in zip(shape, defaults, strict=True)]
        inputs[port.any_name] = (
            np.array([500, 500]) if len(full) == 1 else generator.standard_normal(full).astype(np.float32)
        )
    expected = run(model.clone(), inputs)
    keep_channels_last(model)
    norms = [op for op in model.get_ordered_ops() if op.get_type_name() == "GroupNormalization"]
    assert all(norm.get_input_partial_shape(0).rank == 3 for norm in norms)  # the autoencoder's attention
    np.testing.assert_allclose(run(model, inputs), expected, atol=2e-4 * np.abs(expected).max())
