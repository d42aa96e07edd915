"""A denoiser in two graphs: together they are the whole one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from sfumato.graphs.deep_features import FEATURES, cheap_depth, most_depth, take_features, tell_features

DENOISERS = {"sd": "unet", "sdxl": "unet", "sd3": "transformer", "sd35": "transformer"}
IR = "openvino_model.xml"
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture(params=DENOISERS)
def xml(request: pytest.FixtureRequest, artifacts: Callable[[str], Path]) -> Path:
    return artifacts(request.param) / DENOISERS[request.param] / IR


def read(xml: Path) -> Any:
    return ov.Core().read_model(xml)


def inputs_of(model: Any) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    inputs = {}
    for port in model.inputs:
        shape = port.get_partial_shape()
        rank = shape.rank.get_length()
        if rank == 1:
            inputs[port.any_name] = np.array([500])
            continue
        channels = shape[1 if rank == 4 else rank - 1].get_length()
        full = {2: (1, channels), 3: (1, 20, channels), 4: (1, channels, 16, 16)}[rank]
        inputs[port.any_name] = generator.standard_normal(full, np.float32)
    return inputs


def run(model: Any, inputs: dict[str, np.ndarray]) -> Any:
    return ov.Core().compile_model(model, "CPU", EXACT)(inputs)


def test_the_rest_on_its_own_features_is_the_whole(xml: Path) -> None:
    inputs = inputs_of(read(xml))
    expected = run(read(xml), inputs)["out_sample"]
    for depth in range(1, min(3, most_depth(read(xml))) + 1):
        whole, rest = read(xml), read(xml)
        tell_features(whole, depth)
        take_features(rest, depth)
        told = run(whole, inputs)
        np.testing.assert_allclose(told["out_sample"], expected, atol=1e-5)
        resumed = run(rest, inputs | {FEATURES: told[FEATURES]})["out_sample"]
        np.testing.assert_allclose(resumed, expected, rtol=1e-4, atol=1e-5)
        assert len(rest.get_ordered_ops()) < len(read(xml).get_ordered_ops())


def test_features_matter(xml: Path) -> None:
    inputs = inputs_of(read(xml))
    whole, rest = read(xml), read(xml)
    tell_features(whole, 1)
    take_features(rest, 1)
    told = run(whole, inputs)
    other = run(rest, inputs | {FEATURES: told[FEATURES][:, ::-1]})["out_sample"]
    assert np.abs(other - told["out_sample"]).max() > 1e-3


def attentions(model: Any) -> int:
    return sum(op.get_type_name() == "ScaledDotProductAttention" for op in model.get_ops())


def test_the_cheap_depth_takes_no_attention(xml: Path) -> None:
    depth, rest = cheap_depth(read(xml)), read(xml)
    take_features(rest)
    assert attentions(rest) == 0 or depth == 1
    if depth < most_depth(read(xml)):
        deeper = read(xml)
        take_features(deeper, depth + 1)
        assert attentions(deeper) > 0


def attention(x: Any) -> Any:
    tokens = ops.reshape(x, [1, 1, -1, 4], special_zero=False)
    attended = ops.scaled_dot_product_attention(tokens, tokens, tokens)
    return ops.reshape(attended, ops.shape_of(x), special_zero=False)


@pytest.mark.parametrize(
    ("attended", "depth"),
    [("yes no no no", 3), ("yes yes no no", 2), ("no no yes no", 1), ("no no no no", 1)],
)
def test_the_cheap_depth_ends_where_attention_begins(attended: str, depth: int) -> None:
    """attended: whether there is attention in the deepest part, and after each of three joins."""
    x = ops.parameter([1, 4, 8, 8], np.float32)
    up: Any = ops.relu(x)
    for number, attends in enumerate(attended.split()):
        if number:
            up = ops.add(*ops.split(ops.concat([up, x], 1), 1, 2).outputs())
        up = attention(up) if attends == "yes" else up
    assert cheap_depth(ov.Model([up], [x])) == depth


@pytest.mark.parametrize("change", [tell_features, take_features])
def test_depths_that_are_not_there(xml: Path, change: Callable[[Any, int], None]) -> None:
    most = most_depth(read(xml))
    for depth in (0, most + 1):
        with pytest.raises(ValueError, match=f"depth {depth}: the denoiser has depths 1 to {most}"):
            change(read(xml), depth)


@pytest.mark.parametrize("change", [tell_features, take_features])
def test_a_denoiser_without_parts(change: Callable[[Any, int], None]) -> None:
    x = ops.parameter([1, 4, 8, 8], np.float32)
    with pytest.raises(ValueError, match="neither skip connections nor blocks that can be told apart"):
        change(ov.Model([ops.relu(x)], [x]), 1)
