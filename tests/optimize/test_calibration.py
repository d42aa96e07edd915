"""Calibration: which pictures are made, what is kept of them, and how a killed run goes on."""

from collections import Counter

import handmade
import numpy as np
import pytest

import tiny
from sfumato.artifact import Artifact, load_artifact
from sfumato.errors import InvalidRequest
from sfumato.optimize import calibration, layers
from sfumato.optimize.calibration import MOST_ROWS, ROWS, calibrate, plan
from sfumato.optimize.layers import find_layers
from sfumato.optimize.observe import Observer
from sfumato.optimize.prompts import negatives
from sfumato.runtime.cache import cache_folder
from sfumato.runtime.devices import Device, core
from sfumato.runtime.networks import Network

PROMPTS = [f"a red apple, number {i}" for i in range(10)]
DEVICE = Device(precision="f32", cached=False)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration"


@pytest.fixture
def made(monkeypatch):
    """Leave the networks out: the numbers of the pictures asked for; `made.limit` of them, then no more."""

    class Made(list):
        limit = 1000

    made = Made()

    class Watched:
        def __init__(self, *_):
            """Loads nothing."""

        def picture(self, number, on_step):
            if len(made) == made.limit:
                raise KeyboardInterrupt
            made.append(number)
            on_step(1)
            rows = np.random.default_rng(number).standard_normal((50, 30)).astype(np.float32)
            return {"unet": {("operation", 1): handmade.statistics(rows)}}

    monkeypatch.setattr(calibration, "_Watched", Watched)
    return made


def planned(artifact, samples=6, steps=2, negative_share=1.0, **options):
    settings = {"guidance": None, "size": None, **options}
    return plan(artifact, PROMPTS, samples, negative_share, steps, **settings)


def calibrated(artifact, chosen, components=("unet",), on_sample=lambda *_: None):
    return calibrate(artifact, components, chosen, DEVICE, on_sample)


@pytest.fixture(scope="session")
def sd(artifacts):
    return load_artifact(artifacts("sd"))


@pytest.fixture(scope="session")
def sd3(artifacts):
    return load_artifact(artifacts("sd3"))


@pytest.mark.parametrize(
    ("samples", "steps", "pictures", "taken"),
    [(200, 20, 10, 20), (201, 20, 11, 20), (20, 20, 1, 20), (7, 20, 1, 7), (1, 20, 1, 1), (100, None, 2, 50)],
)
def test_plan_counts(sd, samples, steps, pictures, taken):
    chosen = planned(sd, samples, steps)
    assert (len(chosen.captions), len(chosen.negatives), chosen.steps) == (pictures, pictures, taken)
    kept = chosen.rows * pictures * taken
    assert chosen.rows == MOST_ROWS or ROWS <= kept < ROWS + pictures * taken


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 5), (0.3, 3), (1.0, 10)])
def test_share_of_negative_prompts(sd, share, count):
    chosen = planned(sd, 200, 20, share)
    given = [each for each in chosen.negatives if each is not None]
    assert len(given) == count
    assert set(given) <= set(negatives())
    assert len(set(given)) == min(count, len(negatives()))


def test_no_negative_prompts_without_guidance(sd):
    assert set(planned(sd, 200, 20, guidance=1.0).negatives) == {None}


def test_plan_takes_the_models_defaults_and_what_is_asked_for(sd):
    assert (planned(sd, 10).guidance, planned(sd, 10).size) == (7.5, (64, 64))
    other = planned(sd, 10, guidance=3.0, size=(32, 64))
    assert (other.guidance, other.size) == (3.0, (32, 64))
    with pytest.raises(InvalidRequest, match="size 30x64: both sides must be multiples of 8"):
        planned(sd, 10, size=(30, 64))


def test_captions_are_spread_over_the_file(sd):
    assert planned(sd, 6).captions == (PROMPTS[0], PROMPTS[3], PROMPTS[6])


def sources(artifact, component):
    model = core().read_model(artifact.path / component / "openvino_model.xml")
    return {layer.source for layer in find_layers(model) if not layer.vector}


def test_every_layer_of_every_component_is_seen(sd3):
    chosen = planned(sd3, samples=2, steps=2)
    components = list(sd3.manifest.components)
    seen = calibrated(sd3, chosen, components)
    for name in components:
        assert set(seen.get(name, ())) == sources(sd3, name), name
    for statistics in seen["transformer"].values():
        assert statistics.calls == 2
        assert statistics.rows.shape == (2 * chosen.rows, statistics.low.size)
        assert (statistics.low <= statistics.mean).all()
        assert (statistics.mean <= statistics.high).all()
    encoders = [each for name in components if "text" in name for each in seen.get(name, {}).values()]
    assert encoders
    assert sum(map(len, seen.values())) > 30


def test_each_timestep_equally_often(sd3, monkeypatch):
    timesteps, original = Counter(), Observer.__call__

    def call(self, inputs, outputs):
        timesteps.update(np.unique(inputs.get("timestep", ())).tolist())
        return original(self, inputs, outputs)

    monkeypatch.setattr(Observer, "__call__", call)
    calibrated(sd3, planned(sd3, samples=6, steps=3), ["transformer"])
    assert len(timesteps) == 3
    assert set(timesteps.values()) == {2}
    assert max(timesteps) == 1000


def test_progress_counts_runs_and_ends(sd):
    heard = []  # of PNDM, which calls the denoiser once more than it makes steps
    calibrated(sd, planned(sd), on_sample=lambda *each: heard.append(each))
    done = [each for each, _ in heard]
    assert {total for _, total in heard} == {6}
    assert done == sorted(done)
    assert {2, 4, 6} <= set(done)
    assert max(done) == 6


def equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].keys() == second[name].keys()
        for source, one in first[name].items():
            other = second[name][source]
            assert one.calls == other.calls
            for field in calibration.FIELDS:
                np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    return True


def test_a_killed_run_goes_on(sd, made, cache, tmp_path, monkeypatch):
    chosen = planned(sd)
    made.limit = 2
    with pytest.raises(KeyboardInterrupt):
        calibrated(sd, chosen)
    assert len(list(cache.glob("*/*"))) == 2
    made.limit = 1000
    resumed = calibrated(sd, chosen)
    assert made == [0, 1, 2]
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "other"))
    assert equal(resumed, calibrated(sd, chosen))
    assert made == [0, 1, 2, 0, 1, 2]


def test_what_was_made_once_is_not_made_again(sd, made):
    first = calibrated(sd, planned(sd))
    heard = []
    assert equal(first, calibrated(sd, planned(sd), on_sample=lambda *each: heard.append(each)))
    assert made == [0, 1, 2]
    assert heard[-1] == (6, 6)


@pytest.mark.parametrize(
    "other", [{"guidance": 3.0}, {"size": (32, 64)}, {"samples": 4}, {"steps": 3}, {"negative_share": 0.0}]
)
def test_another_plan_is_another_calibration(sd, made, other):
    calibrated(sd, planned(sd))
    made.clear()
    calibrated(sd, planned(sd, **other))
    assert made == list(range(len(planned(sd, **other).captions)))


def test_another_model_is_another_calibration(sd, sd3, made):
    calibrated(sd, planned(sd))
    calibrated(sd3, planned(sd))
    assert made == [0, 1, 2, 0, 1, 2]


def test_how_a_model_samples_by_default_is_another_thing_than_what_it_is(sd, made):
    """Steps run in full while it is looked at, so what was seen holds for either."""
    sampling = sd.manifest.sampling.model_copy(update={"reuse": "fast", "guidance_every": 2})
    reusing = Artifact(sd.path, sd.manifest.model_copy(update={"sampling": sampling}))
    assert equal(calibrated(sd, planned(sd)), calibrated(reusing, planned(reusing)))
    assert made == [0, 1, 2]


def test_every_step_runs_in_full(sd):
    sampling = sd.manifest.sampling.model_copy(update={"reuse": "fast", "guidance_every": 2})
    reusing = Artifact(sd.path, sd.manifest.model_copy(update={"sampling": sampling}))
    pipe = calibration.pipeline_of(reusing, DEVICE, Network)
    request = pipe("a red apple", steps=9, size=(64, 64)).request
    assert (request.reuse, request.guidance_every) == ("off", 1)


@pytest.mark.parametrize("damage", ["cut short", "empty", "in the middle", "at the start", "no archive"])
def test_a_damaged_file_is_made_again(sd, made, cache, damage):
    chosen = planned(sd)
    first = calibrated(sd, chosen)
    file = sorted(cache.glob("*/*"))[1]
    content = bytearray(file.read_bytes())
    if damage == "in the middle":
        content[len(content) // 2] ^= 255
    elif damage == "at the start":
        content[:40] = bytes(40)
    cut = {"cut short": content[: len(content) // 2], "empty": b"", "no archive": b"x" * 5000}
    file.write_bytes(cut.get(damage, content))
    assert equal(first, calibrated(sd, chosen))
    assert made == [0, 1, 2, 1]


def test_any_damaged_byte_is_noticed(sd, cache):
    chosen = planned(sd, samples=1, steps=1)
    calibrated(sd, chosen)
    (file,) = cache.glob("*/*")
    content = file.read_bytes()
    store = calibration._Store(sd, ["unet"], chosen, DEVICE)
    assert store.has(0)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        if store.has(0):  # a date, or what else says nothing of the content
            list(store._read(0))


def test_what_is_old_goes_and_what_is_used_stays(sd, made, cache, monkeypatch):
    calibrated(sd, planned(sd))
    (cache / "other").mkdir()
    for name in ("00000.npz", ".00001.npz.partial-x"):
        (cache / "other" / name).write_bytes(b"x")
    later = calibration.time.time() + 10 * 86400
    monkeypatch.setattr(calibration.os, "utime", lambda file: _set_time(file, later))
    calibrated(sd, planned(sd))
    monkeypatch.setattr(calibration.time, "time", lambda: later + 10 * 86400)
    calibrated(sd, planned(sd))
    assert made == [0, 1, 2]
    assert not (cache / "other").exists()


def _set_time(file, seconds, _utime=calibration.os.utime):
    _utime(file, (seconds, seconds))


def test_low_memory_sees_the_same(sd, monkeypatch, tmp_path):
    chosen, components = planned(sd, samples=2), ["unet", "vae_decoder", "vae_encoder"]
    high = calibrated(sd, chosen, components)
    assert [each.name for each in cache_folder().iterdir()] == ["calibration"]  # no compiled networks
    monkeypatch.setattr(calibration, "SMALL", 0)
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "other"))
    assert equal(high, calibrated(sd, chosen, components))


def test_models_for_inpainting(artifacts):
    artifact = load_artifact(artifacts("sd-inpaint"))
    chosen = planned(artifact, samples=2)
    seen = calibrated(artifact, chosen, ["unet", "vae_encoder"])
    assert set(seen["unet"]) == sources(artifact, "unet")
    assert all(np.isfinite(each.rows).all() for each in seen["unet"].values())


@pytest.mark.parametrize("name", tiny.CONSISTENT)
def test_models_that_take_the_guidance(name, artifacts):
    artifact = load_artifact(artifacts(name))
    chosen = planned(artifact, samples=2, steps=2)
    assert (chosen.guidance, chosen.negatives) == (8.5, (None,))
    seen = calibrated(artifact, chosen, ["unet"])
    assert set(seen["unet"]) == sources(artifact, "unet")
    assert all(each.calls == 2 for each in seen["unet"].values())


def test_both_halves_of_the_autoencoder_are_seen(sd, monkeypatch):
    monkeypatch.setattr(layers, "SMALLEST", 1)  # those of the tiny one are all too small to gain from 8 bits
    seen = calibrated(sd, planned(sd, samples=1, steps=1), ["vae_encoder", "vae_decoder"])
    for name in ("vae_encoder", "vae_decoder"):
        assert set(seen[name]) == sources(sd, name)
        assert all(each.calls == 1 for each in seen[name].values())
