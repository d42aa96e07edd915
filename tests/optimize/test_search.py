"""Looking for what must stay in floating point: the fewest layers that keep the limits, worst first."""

import math

import handmade
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.artifact import load_artifact
from sfumato.errors import SfumatoError
from sfumato.optimize import optimize
from sfumato.optimize import search as module
from sfumato.optimize.calibration import plan
from sfumato.optimize.recipe import Search, load_recipe
from sfumato.optimize.run import prepare
from sfumato.optimize.search import _fewest, search
from sfumato.runtime.devices import Device, core

RECIPE = """
[calibration]
steps = 2
[unet]
mode = "int8"
keep = ["layer:*down_blocks*", "layer:*attentions*"]
[search]
psnr = {psnr}
r1 = {r1}
prompts = 2
"""


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@settings(deadline=None, max_examples=300)
@given(most=st.integers(0, 200), least=st.integers(0, 220))
def test_fewest_is_the_first_that_holds(most, least):
    asked = []

    def holds(count):
        assert 0 <= count <= most
        asked.append(count)
        return count >= least

    if least > most:
        with pytest.raises(SfumatoError, match="cannot be kept"):
            _fewest(most, holds)
    else:
        assert _fewest(most, holds) == least
    assert len(asked) <= 2 + math.ceil(math.log2(most + 1))


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_what_is_found_holds_even_where_more_is_not_better(answers):
    try:
        assert answers[_fewest(len(answers) - 1, answers.__getitem__)]
    except SfumatoError:
        assert not answers[-1]


def own(tmp_path, **limits):
    file = tmp_path / "own.toml"
    file.write_text(RECIPE.format(**{"psnr": 0, "r1": 1, **limits}), encoding="utf-8")
    return file


@pytest.fixture
def job(artifacts, tmp_path):
    return prepare(load_artifact(artifacts("sd")), load_recipe(own(tmp_path)))


def studio(harms, needed):
    """A studio in which groups harm as given, and these must stay in floating point."""

    class Studio:
        def __init__(self, job, *_):
            self.held = []

        def harm(self, group):
            return harms[group]

        def holds(self, kept, limits):
            names = {layer for layers in kept.values() for layer in layers}
            return all(set(group.layers) <= names for group in needed)

    return Studio


def searched(job, monkeypatch, harms, needed, heard=lambda *_: None):
    monkeypatch.setattr(module, "_Studio", studio(harms, needed))
    chosen = plan(job.artifact, ["a red apple"], 2, 1.0, 2, None, None)
    return search(job, Search(), {}, chosen, Device(), heard)


def test_the_worst_stay_and_no_others(job, monkeypatch):
    groups = module._groups(job)
    assert len(groups) > 2
    harms = {group: number % 3 + number / 100 for number, group in enumerate(groups)}
    worst = sorted(groups, key=harms.get, reverse=True)
    for count in range(len(groups) + 1):
        kept = searched(job, monkeypatch, harms, worst[:count])
        assert kept == ({"unet": tuple(sorted(sum((g.layers for g in worst[:count]), ())))} if count else {})


def test_progress_ends(job, monkeypatch):
    heard = []
    harms = dict.fromkeys(module._groups(job), 1.0)
    searched(job, monkeypatch, harms, list(harms)[:2], lambda *each: heard.append(each))
    done, totals = zip(*heard, strict=True)
    assert len(set(totals)) == 1
    assert list(done) == sorted(done)
    assert done[-1] == totals[0]
    assert max(done) == totals[0]


def test_groups_are_what_could_stay(job, artifacts, tmp_path):
    file = tmp_path / "all.toml"
    file.write_text('[default]\nmode = "int8"\nkeep = ["last_projection"]\n[search]\n')
    every = prepare(load_artifact(artifacts("sd3")), load_recipe(file))
    groups = module._groups(every)
    names = [layer for group in groups for layer in group.layers]
    assert len(set(names)) == len(names)
    assert {group.component for group in groups} >= {"transformer", "text_encoder_3"}
    assert "vae_encoder" not in {group.component for group in groups}
    assert not any("proj_out" in name or "norm1.linear" in name for name in names)
    (query,) = (group for group in groups if any("blocks.0.attn.to_q" in name for name in group.layers))
    assert len(query.layers) == 3  # with key and value, which read the same


def test_limits_that_hold_at_once_and_limits_that_take_some_layers(artifacts, tmp_path, monkeypatch):
    heard, measured = [], module.psnr
    monkeypatch.setattr(module, "psnr", lambda *pair: heard.append(measured(*pair)) or heard[-1])

    def run(name, **limits):
        heard.clear()
        out = tmp_path / name
        return optimize(artifacts("sd"), out, recipe=own(tmp_path, **limits), samples=2)

    free = run("free")
    assert free.manifest.recipe.kept == {}
    least = sum(heard) / len(heard)

    between = run("between", psnr=least + 0.5)
    kept = between.manifest.recipe.kept["unet"]
    assert 0 < len(kept) < len(rounded(free))
    assert set(rounded(between)) == set(rounded(free)) - set(kept)
    assert between.manifest.bytes > free.manifest.bytes
    assert "[search]" in between.manifest.recipe.text


def test_limits_that_cannot_be_kept(job, artifacts, monkeypatch, tmp_path):
    groups = module._groups(job)
    monkeypatch.setattr(module, "_Studio", studio(dict.fromkeys(groups, 1.0), [module.Group("unet", ("x",))]))
    with pytest.raises(SfumatoError, match="lower psnr, raise r1"):
        optimize(artifacts("sd"), tmp_path / "out", recipe=own(tmp_path, psnr=100), samples=2)
    assert [file.name for file in tmp_path.iterdir()] == ["own.toml"]


def rounded(artifact):
    """Names of the layers before which activations are rounded."""
    graph = core().read_model(artifact.path / "unet" / "openvino_model.xml")
    return [
        target.get_node().get_friendly_name()
        for op in handmade.operations(graph, "FakeQuantize")
        for target in op.output(0).get_target_inputs()
    ]
