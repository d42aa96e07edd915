"""Layers are found by what they do in a graph, whatever they are called."""

import handmade
import numpy as np
import openvino as ov
import pytest

from sfumato.artifact import find_model
from sfumato.optimize import layers
from sfumato.optimize.layers import find_layers


def read(folder, component):
    return ov.Core().read_model(folder / component / "openvino_model.xml")


@pytest.fixture
def small(monkeypatch):
    """Let the tiny models' layers count, which are below what is worth quantizing."""
    monkeypatch.setattr(layers, "SMALLEST", 1)


def named(model, part):
    """Names of the layers that play a part, without what the exporter put around them."""
    return {
        layer.name.removeprefix("__module.").rsplit("/", 2)[0]
        for layer in find_layers(model)
        if part in layer.parts
    }


def test_parts_of_a_unet(small, artifacts):
    model = read(artifacts("sdxl"), "unet")
    assert named(model, "first_convolution") == {"unet.conv_in"}
    assert named(model, "last_projection") == {"unet.conv_out"}
    embeddings = ("time_embedding.linear_1", "time_embedding.linear_2")
    embeddings += ("add_embedding.linear_1", "add_embedding.linear_2")
    assert named(model, "time_embedding") == {f"unet.{name}" for name in embeddings}
    modulation = named(model, "modulation")
    assert modulation
    assert all(name.endswith("time_emb_proj") for name in modulation)
    shortcuts = {name for name in named(model, "skip_connections") if "embedding" not in name}
    assert shortcuts
    assert all("up_blocks" in name and name.endswith("conv_shortcut") for name in shortcuts)


def test_parts_of_a_transformer(small, artifacts):
    model = read(artifacts("sd3"), "transformer")
    assert named(model, "first_convolution") == {"transformer.pos_embed.proj"}
    assert named(model, "last_projection") == {"transformer.proj_out"}
    embedders = {
        f"transformer.time_text_embed.{name}.linear_{i}"
        for name in ("timestep_embedder", "text_embedder")
        for i in (1, 2)
    }
    assert named(model, "time_embedding") == embedders
    modulation = named(model, "modulation")
    assert "transformer.norm_out.linear" in modulation
    assert all(".norm" in name for name in modulation)
    assert len(modulation) == 2 * 2 + 1  # of both streams in two blocks, and the last norm


def test_parts_of_an_autoencoder():
    mini = find_model("mini")
    assert named(read(mini, "vae_decoder"), "first_convolution") == {"decoder.conv_in"}
    assert named(read(mini, "vae_encoder"), "last_projection") == {"encoder.conv_out"}


def test_what_works_on_a_vector_is_told_from_what_works_on_tokens(small, artifacts):
    found = find_layers(read(artifacts("sd3"), "transformer"))
    vectors = {layer.name for layer in found if layer.vector}
    by_part = {layer.name for layer in found if layer.parts & {"modulation", "time_embedding"}}
    assert vectors == by_part
    assert len(vectors) < len(found) / 2


def test_small_constants_and_products_of_activations_are_no_layers():
    rng = np.random.default_rng(0)
    x = handmade.parameter("x", 1, 64, 64)
    large = handmade.linear(x, rng.standard_normal((64, 64)).astype(np.float32), name="large")
    small = handmade.linear(large, rng.standard_normal((63, 64)).astype(np.float32), name="small")
    product = handmade.ops.matmul(x, small, False, False)
    found = find_layers(handmade.model([x], {"y": product}))
    assert [layer.name for layer in found] == ["large"]


@pytest.mark.parametrize("taps", [1, 3])
def test_weights_are_by_output_tap_and_input(taps):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((48, 96, taps, taps)).astype(np.float32)
    x = handmade.parameter("x", 2, 96, 5, 7)
    graph = handmade.model([x], {"y": handmade.convolution(x, weights)})
    (layer,) = find_layers(graph)
    matrix = layer.weights()
    assert matrix.shape == (48, taps * taps, 96)
    assert (layer.convolution, layer.vector, layer.channel_axis) == (True, False, 1)

    image = rng.standard_normal((2, 96, 5, 7)).astype(np.float32)
    border = taps // 2
    padded = np.pad(image, ((0, 0), (0, 0), (border, border), (border, border)))
    sums = np.zeros((2, 48, 5, 7), np.float32)
    for tap in range(taps * taps):  # row by row, as kernels are stored
        y, x_ = divmod(tap, taps)
        sums += np.einsum("ncyx,oc->noyx", padded[:, :, y : y + 5, x_ : x_ + 7], matrix[:, tap])
    np.testing.assert_allclose(handmade.infer(graph, x=image)["y"], sums, atol=2e-4)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_weights_of_a_linear_layer_in_any_float(dtype):
    values = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    x = handmade.parameter("x", 1, 5, 96)
    stored = handmade.ops.constant(values, dtype=getattr(ov.Type, dtype))
    if dtype != "f32":
        stored = handmade.ops.convert(stored, "f32")
    (layer,) = find_layers(handmade.model([x], {"y": handmade.ops.matmul(x, stored, False, True)}))
    assert layer.weights().shape == (64, 1, 96)
    assert layer.channel_axis == 2
    np.testing.assert_allclose(layer.weights()[:, 0], values, rtol=2**-7)


def test_layers_that_read_one_activation_have_one_source():
    rng = np.random.default_rng(0)
    x = handmade.parameter("x", 1, 5, 64)
    outputs = {
        name: handmade.linear(x, rng.standard_normal((64, 64)).astype(np.float32), name=name)
        for name in ("q", "k", "v")
    }
    found = find_layers(handmade.model([x], outputs))
    assert {layer.source for layer in found} == {("x", 0)}


@pytest.mark.parametrize(("axis", "expected"), [(1, False), (-2, False), (2, True), (-1, True)])
def test_tokens_that_were_joined_are_no_skip_connection(axis, expected):
    """But channels are: a linear layer on [batch, tokens, channels]."""
    one, other = (handmade.parameter(name, 1, 4, 64) for name in ("one", "other"))
    joined = handmade.ops.concat([one, other], axis)
    width = 128 if expected else 64
    rng = np.random.default_rng(0)
    linear = handmade.linear(joined, rng.standard_normal((96, width)).astype(np.float32))
    (layer,) = find_layers(handmade.model([one, other], {"y": linear}))
    assert ("skip_connections" in layer.parts) == expected
