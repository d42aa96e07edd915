"""Matrices in 4 bits: what is stored comes back, in graphs too, and fitted scales never err more."""

import handmade
import numpy as np
import openvino as ov
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.graphs import four_bits
from sfumato.graphs.compress import Scheme, compress, quantize_int8
from sfumato.graphs.four_bits import NORMAL, expression, quantize_normal, quantize_symmetric, restored

RNG = np.random.default_rng(0)
SCHEMES = [Scheme("int4"), Scheme("int4", symmetric=True), Scheme("nf4")]


def draw(seed, outputs=3, inputs=64, size=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((outputs, inputs)) * size + shift).astype(np.float32)


matrices = st.builds(
    draw,
    seed=st.integers(0, 2**32),
    outputs=st.integers(1, 4),
    inputs=st.sampled_from([32, 64, 128]),
    size=st.sampled_from([0.0, 1e-3, 1.0, 300.0]),
    shift=st.sampled_from([0.0, -0.5, 20.0]),
)


@settings(deadline=None)
@given(matrices)
def test_symmetric_numbers_are_within_half_a_step_of_what_they_cover(matrix):
    groups = matrix.reshape(len(matrix), -1, 32)
    integers, scales = quantize_symmetric(groups)
    wide = scales.astype(np.float32)
    assert integers.min() >= -8
    assert integers.max() <= 7
    # The largest value is 7.5 steps: half a step from 7 or -8; float16 scales are rounded by 2**-11.
    assert (np.abs(integers * wide - groups) <= wide * 0.51).all()
    np.testing.assert_array_equal(quantize_symmetric(np.zeros_like(groups))[0], 0)


@settings(deadline=None)
@given(matrices)
def test_normal_floats_are_the_nearest(matrix):
    groups = matrix.reshape(len(matrix), -1, 32)
    places, scales = quantize_normal(groups)
    share = groups / scales.astype(np.float32)
    nearest = np.abs(share[..., None] - NORMAL).min(-1)
    np.testing.assert_allclose(np.abs(share - NORMAL[places]), nearest, atol=1e-6)


def test_normal_floats_are_the_ones_of_their_paper():
    assert NORMAL.shape == (16,)
    assert (np.diff(NORMAL) > 0).all()
    assert (NORMAL[0], NORMAL[7], NORMAL[15]) == (-1, 0, 1)
    places, scales = quantize_normal(NORMAL.reshape(1, 1, 16) * 2)
    np.testing.assert_array_equal(places[0, 0], np.arange(16))
    assert scales.item() == 2


@pytest.mark.parametrize("scheme", SCHEMES, ids=["int4", "symmetric", "nf4"])
@pytest.mark.parametrize("group", [16, 32, 64, None])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_graph_gives_what_restored_says(scheme, group, weighted):
    matrix = draw(1, 24, 64) * np.exp(draw(2, 24, 1))
    power = np.exp(2 * draw(3, 1, 64))[0] if weighted else None
    value = four_bits.ops.convert(expression(matrix, scheme, group, power), "f32")
    x = handmade.parameter("x", 1, 24, 64)
    graph = handmade.model([x], {"y": handmade.ops.add(x, value)})
    given_back = handmade.infer(graph, x=np.zeros((1, 24, 64), np.float32))["y"][0]
    expected = restored(matrix, scheme, group, power)
    np.testing.assert_allclose(given_back, expected, atol=2e-3 * np.abs(matrix).max())
    lost = np.linalg.norm(expected - matrix) / np.linalg.norm(matrix)
    assert 0.01 < lost < (0.15 if group else 0.2)


@pytest.mark.parametrize("scheme", SCHEMES, ids=["int4", "symmetric", "nf4"])
def test_smaller_groups_lose_less(scheme):
    matrix = draw(1, 64, 128) * np.exp(draw(2, 64, 128))
    losses = [np.square(restored(matrix, scheme, group) - matrix).sum() for group in (16, 32, 64, 128)]
    assert losses == sorted(losses)


@settings(deadline=None, max_examples=60)
@given(
    matrix=matrices,
    scheme=st.sampled_from(SCHEMES),
    seed=st.integers(0, 2**32),
    spread=st.sampled_from([0.0, 1.0, 5.0]),
)
def test_fitted_scales_never_err_more(matrix, scheme, seed, spread):
    inputs = matrix.shape[1]
    power = np.exp(np.random.default_rng(seed).standard_normal(inputs) * spread).astype(np.float32)
    plain, fitted = (restored(matrix, scheme, 32, each) for each in (None, power))
    before, after = (
        (np.square(each - matrix, dtype=np.float64) * power).reshape(len(matrix), -1, 32).sum(2)
        for each in (plain, fitted)
    )
    assert (after <= before * (1 + 1e-5) + 1e-30).all()


def test_fitted_scales_help_where_the_large_weights_hardly_count():
    matrix = draw(0, 32, 64)
    matrix[:, 0] = 6
    power = np.ones(64, np.float32)
    power[0] = 1e-4
    for scheme in SCHEMES:
        errors = [
            float((np.square(restored(matrix, scheme, 64, each) - matrix) * power).sum())
            for each in (None, power)
        ]
        assert errors[1] < 0.8 * errors[0]


def test_inputs_that_were_never_used_change_nothing():
    matrix = draw(0)
    for scheme in SCHEMES:
        np.testing.assert_array_equal(
            restored(matrix, scheme, 32, np.zeros(64, np.float32)), restored(matrix, scheme, 32)
        )


WIDTHS = {"a": 128, "b": 192, "c": 80, "d": 72}


@pytest.fixture
def graph():
    """Linear layers of several widths, one on a vector, an embedding, and a convolution."""
    inputs = {name: handmade.parameter(name, 1, 4, width) for name, width in WIDTHS.items()}
    inputs["vector"] = handmade.parameter("vector", 1, 128)
    inputs["image"] = handmade.parameter("image", 1, 64, 4, 4)
    inputs["ids"] = handmade.ops.parameter([1, 4], np.int64, name="ids")
    outputs = {
        f"y.{name}": handmade.linear(inputs[name], draw(number, 128, width), name=name)
        for number, (name, width) in enumerate({**WIDTHS, "vector": 128}.items())
    }
    outputs["y.image"] = handmade.convolution(
        inputs["image"], draw(9, 64, 64).reshape(64, 64, 1, 1), name="image"
    )
    table = handmade.ops.gather(handmade.ops.constant(draw(8, 100, 64)), inputs["ids"], np.int64(0))
    table.set_friendly_name("table")
    return handmade.model(list(inputs.values()), {**outputs, "y.table": table})


def stored(model):
    """By operation, the type of its weights and how many numbers share a scale (0: no such thing)."""
    found = {}
    for op in model.get_ops():
        if op.get_type_name() not in ("MatMul", "Convolution", "Gather") or len(op.inputs()) < 2:
            continue
        port = 0 if op.get_type_name() == "Gather" else 1
        node, scales = op.input_value(port).get_node(), None
        while node.get_type_name() != "Constant":
            if node.get_type_name() == "Multiply":
                scales = np.prod(node.get_input_shape(1))
            node = node.input_value(0).get_node()
        size = np.prod(node.get_output_shape(0))
        kind = node.get_output_element_type(0).get_type_name()
        found[op.get_friendly_name()] = (kind, int(size // scales) if scales else 0)
    return found


def compressed(model, scheme, **options):
    compress(model, scheme, lambda: None, **options)
    model.validate_nodes_and_infer_types()
    return stored(model)


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [(Scheme("int4"), "u4"), (Scheme("int4", symmetric=True), "i4"), (Scheme("nf4"), "nf4")],
)
def test_groups_that_do_not_divide_are_the_largest_that_do(graph, scheme, kind):
    found = compressed(graph, scheme)
    assert (found["a"], found["b"], found["c"]) == ((kind, 64), (kind, 64), (kind, 16))
    assert found["d"] == ("i8", 72)  # 72 has no group of 16 or more that is a power of two
    assert found["vector"] == ("i8", 128)
    assert found["table"] == ("i8", 64)
    assert found["image"] == ("f32", 0)


def test_whole_rows(graph):
    found = compressed(graph, Scheme("int4", group=-1))
    assert {name: found[name] for name in WIDTHS} == {name: ("u4", width) for name, width in WIDTHS.items()}


def test_what_is_kept_stays_as_it_is(graph):
    found = compressed(graph, Scheme("int4"), kept={"a", "table"})
    assert found["a"] == found["table"] == ("f32", 0)
    assert found["b"][0] == "u4"


def test_convolutions_are_stored_in_8_bits_where_that_is_asked_for(graph):
    assert compressed(graph, Scheme("int8"), convolutions={"image"})["image"] == ("i8", 64)
    image = RNG.standard_normal((1, 64, 4, 4)).astype(np.float32)
    zeros = {name: np.zeros((1, 4, width), np.float32) for name, width in WIDTHS.items()}
    given = handmade.infer(
        graph,
        **zeros,
        vector=np.zeros((1, 128), np.float32),
        image=image,
        ids=np.zeros((1, 4), np.int64),
    )
    exact = np.einsum("nchw,oc->nohw", image, draw(9, 64, 64))
    lost = np.linalg.norm(given["y.image"] - exact) / np.linalg.norm(exact)
    assert 1e-4 < lost < 0.02


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_the_share_in_4_bits(graph, ratio):
    found = compressed(graph, Scheme("int4", ratio=ratio))
    sizes = {name: 128 * WIDTHS[name] for name in "abc"}  # those that could take 4 bits
    share = sum(size for name, size in sizes.items() if found[name][0] == "u4") / sum(sizes.values())
    assert share <= ratio + 1e-6
    assert share == (0 if ratio == 0 else share)
    assert (share == 1) == (ratio == 1)
    if ratio >= 0.6:
        assert share >= 0.2  # no layer has more than half of the weights


def test_those_that_lose_least_take_4_bits():
    """Even weights fit a grid; one outlier in each group does not."""
    even, uneven = draw(0, 64, 128), draw(1, 64, 128)
    even[:] = np.rint(even.clip(-1, 1) * 2) / 2
    uneven[:, ::64] = 50
    x = handmade.parameter("x", 1, 4, 128)
    outputs = {name: handmade.linear(x, each, name=name) for name, each in (("u", uneven), ("e", even))}
    found = compressed(handmade.model([x], outputs), Scheme("int4", ratio=0.5))
    assert (found["u"][0], found["e"][0]) == ("i8", "u4")


def test_weights_by_importance_reach_the_graph(graph):
    power = {"a": np.geomspace(1e-4, 1e4, 128).astype(np.float32)}
    compressed(graph, Scheme("int4"), power=power)
    x = {name: np.zeros((1, 4, width), np.float32) for name, width in WIDTHS.items()}
    x["a"][0] = RNG.standard_normal((4, 128)) * np.sqrt(power["a"])
    given = handmade.infer(
        graph,
        **x,
        vector=np.zeros((1, 128), np.float32),
        image=np.zeros((1, 64, 4, 4), np.float32),
        ids=np.zeros((1, 4), np.int64),
    )["y.a"]
    matrix = draw(0, 128, 128)
    fitted, plain = (restored(matrix, Scheme("int4"), 64, each) for each in (power["a"], None))
    np.testing.assert_allclose(given, x["a"] @ fitted.T, rtol=1e-2, atol=1e-2 * np.abs(given).max())
    assert not np.array_equal(fitted, plain)


def test_a_row_of_zeros_stays_zero():
    matrix = draw(0)
    matrix[1] = 0
    for scheme in SCHEMES:
        np.testing.assert_array_equal(restored(matrix, scheme, 32)[1], 0)
    integers, scales = quantize_int8(matrix)
    assert not integers[1].any()
    assert np.isfinite(scales).all()


def test_packed_puts_the_first_number_in_the_low_half():
    values = np.array([[1, 2, 3]], np.uint8)
    constant = four_bits.packed(values, ov.Type.u4)
    assert constant.get_output_shape(0) == [1, 3]
    assert constant.data.reshape(-1)[0] == 1 | 2 << 4
