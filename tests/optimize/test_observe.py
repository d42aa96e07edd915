"""What is noted of a network's activations is what NumPy finds in the same activations."""

from types import SimpleNamespace

import handmade
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.files import hash_file
from sfumato.graphs.ir import save_ir
from sfumato.optimize.observe import Observer, Statistics
from sfumato.runtime.devices import Device
from sfumato.runtime.networks import Edit, Network

ROWS = 5
RNG = np.random.default_rng(0)
KERNELS = [
    RNG.standard_normal(shape).astype(np.float32) / 10 for shape in ((64, 16, 3, 3), (64, 64, 1, 1), (96, 64))
]
SHAPES = {"image": (2, 16, 6, 4), "tokens": (2, 7, 64), "vector": (2, 64)}
OUTPUTS = {"picture": (2, 64, 6, 4), "text": (2, 7, 96), "embedding": (2, 96)}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(shape) * (seed + 1) - 0.5).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def activations(inputs):
    """What the layers of the network below read, as rows of channels, by source."""
    hidden = np.maximum(handmade.convolved(inputs["image"], KERNELS[0]), 0)
    return {
        ("image", 0): handmade.rows(inputs["image"], 1),
        ("hidden", 0): handmade.rows(hidden, 1),
        ("tokens", 0): handmade.rows(inputs["tokens"], 2),
    }


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A network of two convolutions, of a linear layer on tokens, and of one on a vector."""
    image, tokens, vector = (handmade.parameter(name, *shape) for name, shape in SHAPES.items())
    hidden = handmade.ops.relu(handmade.convolution(image, KERNELS[0]))
    hidden.set_friendly_name("hidden")
    graph = handmade.model(
        [image, tokens, vector],
        {
            "picture": handmade.convolution(hidden, KERNELS[1]),
            "text": handmade.linear(tokens, KERNELS[2]),
            "embedding": handmade.linear(vector, KERNELS[2]),
        },
    )
    folder = tmp_path_factory.mktemp("artifact")
    save_ir(graph, folder / "net" / "openvino_model.xml")
    files = {
        f"net/{file.name}": SimpleNamespace(sha256=hash_file(file)) for file in (folder / "net").iterdir()
    }
    return SimpleNamespace(path=folder, manifest=SimpleNamespace(files=files))


@pytest.fixture
def observer(artifact):
    return Observer(artifact, "net", Device(precision="f32"), rows=ROWS)


def test_figures_are_those_of_the_activations(observer):
    calls = [draw(seed) for seed in range(3)]
    for inputs in calls:
        observer(inputs, OUTPUTS)
    seen = observer.taken()
    expected = [activations(inputs) for inputs in calls]
    assert set(seen) == set(expected[0])  # the layer on a vector is left out
    for source, found in seen.items():
        every = np.concatenate([each[source] for each in expected])
        assert found.calls == len(calls)
        for field, value in (
            ("low", every.min(0)),
            ("high", every.max(0)),
            ("mean", every.mean(0)),
            ("power", np.square(every).mean(0)),
        ):
            assert getattr(found, field).dtype == np.float32
            np.testing.assert_allclose(getattr(found, field), value, rtol=1e-4, atol=1e-4, err_msg=field)


def test_rows_are_rows_of_the_activation_from_the_same_places(observer):
    calls = [draw(seed) for seed in range(3)]
    for inputs in calls:
        observer(inputs, OUTPUTS)
    for source, found in observer.taken().items():
        assert found.rows.shape == (len(calls) * ROWS, found.low.size)
        places = []
        for number, inputs in enumerate(calls):
            all_rows = activations(inputs)[source]
            mine = found.rows[number * ROWS : (number + 1) * ROWS]
            distances = np.abs(mine[:, None] - all_rows[None]).max(2)
            assert (distances.min(1) < 1e-4).all()
            places.append(distances.argmin(1).tolist())
        assert places == [places[0]] * len(calls)
        assert len(set(places[0])) > 1


def test_outputs_are_those_of_the_network_alone(observer, artifact):
    inputs = draw(1)
    observed = observer(inputs, OUTPUTS)
    alone = Network(artifact, "net", Device(precision="f32", cached=False))(inputs, OUTPUTS)
    assert set(observed) == set(OUTPUTS)
    for name, value in alone.items():
        np.testing.assert_allclose(observed[name], value, rtol=1e-5, atol=1e-5)


def test_taken_forgets(observer):
    observer(draw(1), OUTPUTS)
    assert observer.taken()
    assert observer.taken() == {}


def test_an_edit_comes_before_the_looking(artifact):
    def double(model):
        for op in handmade.operations(model, "Relu"):
            doubled = handmade.ops.multiply(op.output(0), np.float32(2))
            doubled.set_friendly_name("doubled")
            for target in op.output(0).get_target_inputs():
                if target.get_node() != doubled:
                    target.replace_source_output(doubled.output(0))

    inputs = draw(2)
    edited = Observer(artifact, "net", Device(precision="f32"), Edit("double", double), rows=1)
    edited(inputs, OUTPUTS)
    hidden = activations(inputs)["hidden", 0]
    np.testing.assert_allclose(edited.taken()["doubled", 0].high, 2 * hidden.max(0), rtol=1e-4)


def test_other_shapes_are_noted_too(artifact):
    observer = Observer(artifact, "net", Device(precision="f32"), rows=ROWS)
    observer(draw(1), OUTPUTS)
    with pytest.raises(Exception, match="tokens"):
        observer(draw(1) | {"tokens": np.zeros((2, 7, 63), np.float32)}, OUTPUTS)
    assert all(found.calls == 1 for found in observer.taken().values())


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    channels=st.integers(1, 6),
    rows=st.integers(0, 3),
)
def test_together_is_of_all_calls(seed, sizes, channels, rows):
    rng = np.random.default_rng(seed)
    figures = [rng.standard_normal((calls, 4 + rows, channels)).astype(np.float32) * 10 for calls in sizes]
    together = Statistics.together(map(Statistics.of_calls, figures))
    at_once = Statistics.of_calls(np.concatenate(figures))
    assert together.calls == at_once.calls == sum(sizes)
    for field in ("low", "high", "rows"):
        np.testing.assert_array_equal(getattr(together, field), getattr(at_once, field))
    for field in ("mean", "power"):
        assert getattr(together, field).dtype == np.float32
        np.testing.assert_allclose(getattr(together, field), getattr(at_once, field), rtol=1e-4, atol=1e-4)
