"""Token merging as an edit of a denoiser's graph: which tokens merge, and that the rest stays as it is."""

import math
from itertools import groupby

import numpy as np
import openvino as ov
import pytest
from handmade import linear
from openvino import opset15 as ops

from sfumato.errors import InvalidRequest
from sfumato.graphs.attention import find_self_attention, token_counts
from sfumato.graphs.ir import save_ir
from sfumato.graphs.token_matching import Counts, match, merged, pooled, restored
from sfumato.graphs.token_merging import TokenMerging, merge_tokens
from sfumato.optimize import layers

SIZES = [(1, 1), (1, 5), (2, 2), (7, 9), (16, 16), (33, 70)]
CHANNELS = 8
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


def read(folder, component):
    return ov.Core().read_model(folder / component / "openvino_model.xml")


def run(model, pictures):
    model.reshape({0: list(pictures.shape)})
    compiled = ov.Core().compile_model(model, "CPU", EXACT)
    assert not any(port.partial_shape.is_dynamic for port in compiled.outputs)
    return [np.array(value) for value in compiled([pictures]).values()]


def on_tokens(operation):
    """A model of an operation on tokens of a grid, and on their matching."""
    grid = ops.parameter([-1, CHANNELS, -1, -1], np.float32)
    tokens = ops.transpose(ops.reshape(grid, [0, 0, -1], True), [0, 2, 1])
    return ov.Model([ops.result(value) for value in operation(tokens.output(0), Counts(grid))], [grid])


def matching(height, width, thousandths, pictures):
    def outputs(tokens, counts):
        found = match(tokens, counts, thousandths)
        fewer = merged(tokens, found)
        return [fewer, restored(fewer, found), found.order, found.rows]

    return run(on_tokens(outputs), pictures)


def noise(height, width, seed=0, batch=2):
    drawn = np.random.Generator(np.random.PCG64(seed)).standard_normal((batch, CHANNELS, height, width))
    return drawn.astype(np.float32)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("thousandths", [1, 300, 750])
def test_every_token_is_kept_or_merged_into_a_destination(height, width, thousandths):
    pictures = noise(height, width)
    fewer, whole, order, rows = matching(height, width, thousandths, pictures)
    count, cells = height * width, math.ceil(height / 2) * math.ceil(width / 2)
    left = max(count - count * thousandths // 1000, cells)
    assert fewer.shape == (2, left, CHANNELS)
    tokens = pictures.reshape(2, CHANNELS, -1).transpose(0, 2, 1)
    for picture in range(2):
        kept, gone = order[picture, :left], order[picture, left:]
        assert sorted(order[picture]) == list(range(count))
        assert np.array_equal(rows[picture, kept], np.arange(left))
        assert np.all(rows[picture, gone] < cells)  # destinations are the first that are kept
        means = [tokens[picture, rows[picture] == row].mean(0) for row in range(left)]
        np.testing.assert_allclose(fewer[picture], means, atol=1e-5)
        np.testing.assert_array_equal(whole[picture], fewer[picture, rows[picture]])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 9)])
def test_the_most_similar_tokens_merge(height, width):
    """Against a search over all pairs, in a grid that is one window."""
    pictures = noise(height, width)
    _, _, order, rows = matching(height, width, 300, pictures)
    left = height * width - height * width * 300 // 1000
    tokens = pictures.reshape(2, CHANNELS, -1).transpose(0, 2, 1)
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    cells = math.ceil(height / 2) * math.ceil(width / 2)
    for picture in range(2):
        kept, gone = order[picture, :left], order[picture, left:]
        targets = kept[:cells]
        similar = unit[picture] @ unit[picture, targets].T
        np.testing.assert_array_equal(targets[similar[gone].argmax(1)], kept[rows[picture, gone]])
        best = similar.max(1)
        assert best[gone].min() >= best[kept[cells:]].max()


def test_one_destination_in_each_cell():
    _, _, order, _ = matching(7, 9, 750, noise(7, 9))
    y, x = np.divmod(order[0, :20], 9)
    assert sorted(zip(y // 2, x // 2, strict=True)) == [
        (row, column) for row in range(4) for column in range(5)
    ]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_equal_tokens_merge_without_a_change(height, width):
    same = np.broadcast_to(noise(1, 1), (2, CHANNELS, height, width)).copy()
    _, whole, *_ = matching(height, width, 750, same)
    np.testing.assert_allclose(whole, same.reshape(2, CHANNELS, -1).transpose(0, 2, 1), atol=2e-5)


@pytest.mark.parametrize(
    ("height", "width", "side", "fewer"), [(8, 6, 500, 12), (7, 9, 707, 30), (1, 1, 500, 1)]
)
def test_pooling_averages_areas(height, width, side, fewer):
    pictures = noise(height, width)
    model = on_tokens(lambda tokens, counts: [pooled(tokens, counts, side)])
    (few,) = run(model, pictures)
    assert few.shape == (2, fewer, CHANNELS)
    np.testing.assert_allclose(few.mean(1), pictures.mean((2, 3)), atol=1e-5)
    if side == 500 and height > 1:
        expected = pictures.reshape(2, CHANNELS, height // 2, 2, width // 2, 2).mean((3, 5))
        np.testing.assert_allclose(few, expected.reshape(2, CHANNELS, -1).transpose(0, 2, 1), atol=1e-6)


@pytest.mark.parametrize(("name", "component", "count"), [("sd", "unet", 4), ("sd3", "transformer", 2)])
def test_self_attention_is_found(artifacts, name, component, count):
    """A UNet's cross-attention and an MMDiT's text are left alone."""
    model = read(artifacts(name), component)
    found = find_self_attention(model)
    assert len(found) == count
    assert all("attn2" not in each.out.get_friendly_name() for each in found)
    assert all(each.out.get_friendly_name().count("to_out") for each in found)
    if name == "sd":
        assert token_counts(model, found) == [256, 64, 256, 256]


def test_dual_attention_is_found_with_the_joint_one_first(artifacts):
    found = find_self_attention(read(artifacts("sd35"), "transformer"))
    assert [bool(each.slices) for each in found] == [True, False, True]
    assert found[0].block == found[1].block


def test_ratio_zero_leaves_the_graph_as_it_is(artifacts):
    model = read(artifacts("sd"), "unet")
    before = [op.get_friendly_name() for op in model.get_ordered_ops()]
    assert merge_tokens(model, 0.0) == 0
    assert [op.get_friendly_name() for op in model.get_ordered_ops()] == before


@pytest.mark.parametrize("ratio", [1.0, 0.751, -0.1, math.nan, math.inf])
def test_ratios_that_make_no_sense_are_refused(ratio):
    with pytest.raises(InvalidRequest, match="share of the tokens"):
        TokenMerging(ratio)


def test_other_methods_and_models_are_refused(artifacts):
    with pytest.raises(InvalidRequest, match="match or pool"):
        TokenMerging(0.5, "average")
    with pytest.raises(InvalidRequest, match="no self-attention"):
        merge_tokens(read(artifacts("sd"), "vae_decoder").clone(), 0.5)


@pytest.fixture(scope="module")
def unet_inputs():
    generator = np.random.Generator(np.random.PCG64(1))
    return {
        "sample": generator.standard_normal((2, 4, 15, 17), np.float32),
        "timestep": np.array([7]),
        "encoder_hidden_states": generator.standard_normal((2, 16, 32), np.float32),
    }


def predict(model, inputs):
    return ov.Core().compile_model(model, "CPU", EXACT)(inputs)["out_sample"].copy()


@pytest.mark.parametrize("method", ["match", "pool"])
def test_a_merged_unet_runs_with_dynamic_and_fixed_sizes_to_the_same_bytes(
    artifacts, unet_inputs, tmp_path, method
):
    model = read(artifacts("sd"), "unet")
    whole = predict(model, unet_inputs)
    assert merge_tokens(model, 0.5, method) == 4
    save_ir(model, tmp_path / "openvino_model.xml")
    saved = ov.Core().read_model(tmp_path / "openvino_model.xml")
    dynamic = predict(saved, unet_inputs)
    saved.reshape({name: list(value.shape) for name, value in unet_inputs.items()})
    fixed = predict(saved, unet_inputs)
    assert fixed.tobytes() == predict(saved, unet_inputs).tobytes()
    np.testing.assert_allclose(dynamic, fixed, atol=1e-5)
    assert 1e-3 < np.abs(fixed - whole).max() < 0.2


def test_the_merged_graph_is_the_same_bytes_each_time(artifacts, tmp_path):
    for name in "ab":
        model = read(artifacts("sd"), "unet")
        merge_tokens(model, 0.5)
        save_ir(model, tmp_path / f"{name}.xml")
    assert (tmp_path / "a.xml").read_bytes() == (tmp_path / "b.xml").read_bytes()


def test_a_layer_stays_quantized(artifacts, unet_inputs):
    """What quantizes a layer's input moves behind the merging; SmoothQuant's factors too."""
    model = read(artifacts("sd"), "unet")
    attention = find_self_attention(model)[0]
    factors = ops.constant(np.full((1, 1, 16), 0.5, np.float32))
    smooth = ops.multiply(attention.tokens, factors)
    bounds = [ops.constant(np.float32(value)) for value in (-2, 2, -2, 2)]
    quantized = ops.fake_quantize(smooth, *bounds, 255)
    for layer in (attention.queries, attention.keys, attention.values):
        layer.input(0).replace_source_output(quantized.output(0))
    assert merge_tokens(model, 0.5) == 4
    for layer in (attention.queries, attention.keys, attention.values):
        fake = layer.input_value(0).get_node()
        assert fake.get_type_name() == "FakeQuantize"
        assert fake.get_attributes()["levels"] == 255
        before = fake.input_value(0).get_node()
        assert before.get_type_name() == "Multiply"
        assert before.input_value(1).get_node() == factors
    predict(model, unet_inputs)


def test_merging_adds_no_layers_and_no_skip_connections(artifacts, monkeypatch):
    monkeypatch.setattr(layers, "SMALLEST", 1)
    model = read(artifacts("sd3"), "transformer")
    before = {layer.name: layer.parts for layer in layers.find_layers(model)}
    merge_tokens(model, 0.5)
    assert {layer.name: layer.parts for layer in layers.find_layers(model)} == before


SD15 = [(0, 2), (1, 2), (2, 2), (3, 1), (2, 3), (1, 3), (0, 3)]
SDXL = [(1, 4), (2, 60), (1, 6)]


def network(runs):
    """Blocks of self-attention, in runs: how often the sides are halved there, and how many blocks."""
    latents = grid = ops.parameter([-1, CHANNELS, -1, -1], np.float32)
    above = 0
    for level, blocks in runs:
        scales = ops.constant(np.full(2, 2.0 ** (above - level), np.float32))
        grid = ops.interpolate(grid, scales, "nearest", "scales", axes=ops.constant(np.array([2, 3])))
        for _ in range(blocks):
            grid = attend(grid)
        above = level
    return ov.Model([ops.result(grid)], [latents])


def attend(grid):
    tokens = ops.transpose(ops.reshape(grid, [0, 0, -1], True), [0, 2, 1])
    weights = np.eye(CHANNELS, dtype=np.float32)
    normal = ops.mvn(tokens, ops.constant([-1]), True, 1e-5, "inside_sqrt")
    mixed = ops.scaled_dot_product_attention(*(linear(normal, weights) for _ in range(3)))
    whole = ops.transpose(ops.add(tokens, linear(mixed, weights)), [0, 2, 1])
    return ops.reshape(whole, ops.shape_of(grid), False)


def matchings(attentions):
    """How many neighbours restore their tokens by each matching, of those that do."""
    users = [next(iter(each.out.output(0).get_target_inputs())).get_node() for each in attentions]
    gathers = [user for user in users if user.get_type_name() == "Gather"]
    return [len(list(run)) for _, run in groupby(gathers, lambda op: op.input_value(1).get_node().name)]


@pytest.mark.parametrize("method", ["match", "pool"])
@pytest.mark.parametrize(
    ("runs", "merging"),
    [
        pytest.param(SD15, {0, 1}, id="sd15"),
        pytest.param(SDXL, {1}, id="sdxl"),
        pytest.param([(2, 1), (3, 2), (2, 2)], {2}, id="none-above"),
    ],
)
def test_tokens_merge_down_to_half_the_resolution_or_else_at_the_highest(runs, merging, method):
    model = network(runs)
    attentions = find_self_attention(model)
    levels = [level for level, blocks in runs for _ in range(blocks)]
    assert token_counts(model, attentions) == [256 // 4**level for level in levels]
    assert merge_tokens(model, 0.5, method) == sum(level in merging for level in levels)
    for level, each in zip(levels, attentions, strict=True):
        fewer = each.keys.input_value(0).get_node().name != each.tokens.get_node().name
        assert fewer == (level in merging)


@pytest.mark.parametrize(
    ("runs", "shared"),
    [
        ([(0, 1)], [1]),
        ([(0, 3)], [2, 1]),
        ([(0, 4)], [3, 1]),
        ([(0, 7)], [3, 3, 1]),
        ([(0, 3), (1, 4), (0, 2)], [3, 3, 1, 1, 1]),
        ([(0, 3), (2, 2)], [3]),
        (SD15, [2, 2, 3, 2, 1]),
    ],
)
def test_three_neighbours_share_a_matching_and_the_last_block_has_its_own(runs, shared):
    model = network(runs)
    attentions = find_self_attention(model)
    merge_tokens(model, 0.5)
    assert matchings(attentions) == shared
