"""A training from a float checkpoint to a quantized model: how it ends, how it goes on, what is refused."""

import hashlib
import json
from collections import Counter
from types import SimpleNamespace

import handmade
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from sfumato import Pipeline
from sfumato.artifact import load_artifact, verify
from sfumato.compare import psnr
from sfumato.errors import CheckpointError, InvalidRequest, SfumatoError
from sfumato.families import FAMILIES
from sfumato.optimize.recipe import load_recipe
from sfumato.runtime.devices import core
from sfumato.train.distill.source import open_source
from sfumato.train.loop import Plan
from sfumato.train.qat import run
from sfumato.train.qat.run import Settings, run_folder, train, with_merging
from sfumato.train.qat.task import Losses

RECIPE = '[denoiser]\nmode = "int8"\nsmooth = "auto"\n'
QUICK = {"recipe": "own.toml", "samples": 4}


def plan(steps=4, **options):
    rates = {"rate": 1e-3, "rates": {"ranges": 1e-3}, "schedule": "constant"}
    every = {"save_every": 1, "log_every": 1, "sample_every": 1000}
    return Plan(**{"steps": steps, "batch": 2, **rates, **every, **options})


@pytest.fixture(autouse=True)
def recipes(tmp_path, monkeypatch):
    """A recipe for the denoiser alone, which needs no calibration, where relative paths are found."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text(RECIPE)
    (tmp_path / "other.toml").write_text(RECIPE + "bias_correction = true\n")


@pytest.fixture
def start(checkpoints, pictures, tmp_path):
    """`start(out, steps, name, of={...the plan's}, **settings)`: a training on a tiny checkpoint."""

    def start(out="out", steps=4, name="sd3-no-t5", data=None, say=ignore, stage=ignore, of=None, **settings):
        chosen = Settings(**{**QUICK, **settings})
        given = plan(steps, **(of or {}))
        return train(checkpoints(name), data or pictures, tmp_path / out, chosen, given, say, stage)

    return start


def ignore(*_):
    pass


@pytest.fixture
def no_artifact(monkeypatch):
    """Leave the last part out: a training gives its task."""
    monkeypatch.setattr(run, "finish", lambda *given: given[4])


@pytest.fixture
def nothing_done(monkeypatch):
    """Fail where work begins."""

    def work(*_, **__):
        raise AssertionError("work began")

    for name in ("open_source", "open_examples", "find_readers"):
        monkeypatch.setattr(run, name, work)


def stopping(text):
    """What interrupts a run once this is said."""

    def say(line):
        if text in line:
            raise KeyboardInterrupt

    return say


def hashes(folder):
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and file.name not in ("sfumato.json", "modular_model_index.json")
    }


def kinds(folder, kind):
    (xml,) = (each for name in ("unet", "transformer") for each in folder.glob(f"{name}/openvino_model.xml"))
    graph = core().read_model(xml)
    return Counter(op.get_output_element_type(0).get_type_name() for op in handmade.operations(graph, kind))


def picture(folder):
    result = Pipeline.load(folder, precision="f32")("a red apple", seed=5, steps=4)
    return np.asarray(result.images[0])


def test_from_a_float_checkpoint_to_a_quantized_model(start, artifacts, tmp_path):
    """The autoencoder is calibrated as `sfumato optimize` does it."""
    (tmp_path / "own.toml").write_text(
        f'{RECIPE}[vae]\nmode = "int8"\n[text_encoders]\nmode = "int8-weights"\n[calibration]\nsamples = 2\n'
    )
    lines, stages = [], []
    watched = {"say": lines.append, "stage": lambda *each: stages.append(each)}
    made = start(steps=2, name="sd", of={"sample_every": 2}, **watched)
    verify(made.path)
    assert made.path == tmp_path / "out" and made.manifest.precision == "own"
    assert made.manifest.recipe.text == load_recipe(tmp_path / "own.toml").to_toml()
    before = load_artifact(artifacts("sd")).manifest
    assert made.manifest.components == before.components and made.manifest.sampling == before.sampling
    assert kinds(made.path, "Constant")["i8"] > 20 and kinds(made.path, "FakeQuantize")["f32"] > 20
    assert psnr(picture(made.path), picture(artifacts("sd"))) > 20
    folder = run_folder(tmp_path / "out")
    kept = {each.name for each in folder.iterdir() if not each.name.startswith("latents")}
    assert kept - {"tensorboard"} == {
        *("settings.json", "ranges.npz", "checkpoint.pt", "log.jsonl", "unet", "samples-2.png")
    }
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and {"loss", "data", "teacher"} <= rows[0].keys()
    assert any("ranges of" in line for line in lines)
    assert {text for text, *_ in stages} >= {"converting unet", "optimizing unet", "hashing"}


def test_a_stopped_run_ends_as_an_uninterrupted_one(start, tmp_path):
    whole = start("whole", of={"ema_decay": 0.9})
    with pytest.raises(KeyboardInterrupt):
        start("stopped", say=stopping("step 3/4"), of={"ema_decay": 0.9})
    assert not (tmp_path / "stopped").exists()
    lines = []
    resumed = start("stopped", say=lines.append, of={"ema_decay": 0.9})
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["3/4", "4/4"]
    assert hashes(whole.path) == hashes(resumed.path)
    assert not (run_folder(tmp_path / "stopped") / "floating").exists()


class TestResuming:
    """What a run that was stopped may be told when it goes on."""

    @pytest.fixture
    def stopped(self, start):
        with pytest.raises(KeyboardInterrupt):
            start(say=stopping("step 2/4"))

    @pytest.mark.parametrize(
        ("settings", "of", "name"),
        [
            ({"rank": 2}, {}, "rank"),
            ({"dropout": 0.5}, {}, "dropout"),
            ({"samples": 5}, {}, "samples"),
            ({"losses": Losses(features=1.0)}, {}, "losses"),
            ({"quantizers_only": True}, {}, "quantizers_only"),
            ({"checkpointing": True}, {}, "checkpointing"),
            ({}, {"seed": 1}, "seed"),
            ({}, {"batch": 3}, "batch"),
            ({}, {"ema_decay": None}, "ema_decay"),
        ],
    )
    def test_other_settings_are_refused_by_name(self, settings, of, name, stopped, start, monkeypatch):
        monkeypatch.setattr(run, "find_readers", None)
        with pytest.raises(InvalidRequest, match=f"out.run was begun with {name} .*, now it is") as error:
            start(of=of, **settings)
        assert "\n" not in str(error.value)

    def test_another_recipe_is_refused_in_one_line(self, stopped, start):
        with pytest.raises(InvalidRequest, match="was begun with recipe") as error:
            start(recipe="other.toml")
        assert "\n" not in str(error.value) and len(str(error.value)) < 400

    def test_other_pictures_are_refused(self, stopped, start, pictures, tmp_path, no_artifact):
        other = tmp_path / "fewer"
        other.mkdir()
        (other / "0.png").write_bytes((pictures / "0.png").read_bytes())
        (other / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a red apple"}')
        with pytest.raises(InvalidRequest, match="was begun with data"):
            start(data=other)

    @pytest.mark.parametrize("of", [{"rate": 1e-4}, {"rates": {"ranges": 1e-4}}, {"clip": 0.5}])
    def test_a_diverged_run_goes_on_with_another_rate_as_it_is_told_to(self, of, stopped, start, no_artifact):
        assert start(of=of) is not None

    def test_it_can_be_longer(self, stopped, start, no_artifact):
        lines = []
        start(steps=5, say=lines.append)
        assert [line.split()[1] for line in lines if line.startswith("step ")] == [
            f"{n}/5" for n in (2, 3, 4, 5)
        ]


def test_what_exists_is_refused_before_any_work(start, nothing_done, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InvalidRequest, match="out: exists already"):
        start()
    assert not run_folder(tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", ["int8-weights", "int4", "nf4"])
def test_recipes_that_leave_activations_are_refused(recipe, start, tmp_path):
    with pytest.raises(InvalidRequest, match=f"recipe '{recipe}': leaves .* choose int8, int8-aggressive"):
        start(recipe=recipe)
    assert not run_folder(tmp_path / "out").exists()


@pytest.mark.parametrize("keys", ['weights = "nf4"', 'weights = "int4"\nsymmetric = true'])
def test_weights_that_training_cannot_round_are_refused(keys, start, no_artifact, tmp_path):
    """Training rounds to 4 bits with a zero point; another form in the artifact would undo it."""
    (tmp_path / "own.toml").write_text(f'[denoiser]\nmode = "int8"\n{keys}\n')
    with pytest.raises(InvalidRequest, match="recipe 'own': training rounds weights to int8, or to int4"):
        start(steps=1)


@pytest.mark.parametrize("given", [{"recipe": "int-8"}, {"token_merging": 1.0}, {"recipe": "none.toml"}])
def test_what_cannot_be_leaves_nothing(given, start, tmp_path):
    with pytest.raises(InvalidRequest):
        start(**given)
    assert not run_folder(tmp_path / "out").exists()


def test_a_folder_that_is_no_checkpoint_is_refused(pictures, tmp_path):
    with pytest.raises(CheckpointError):
        train(pictures, pictures, tmp_path / "out", Settings(**QUICK), plan(), ignore)
    assert not run_folder(tmp_path / "out").exists()


def test_fifty_steps_lower_the_loss(start, no_artifact, tmp_path):
    start(steps=50, losses=Losses(data=0.0), of={"log_every": 10, "save_every": 50})
    rows = [json.loads(line) for line in (tmp_path / "out.run" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["teacher"] < 0.8 * rows[0]["teacher"]


def test_adapters_leave_the_weights_and_end_in_a_model(start, checkpoints, artifacts, monkeypatch):
    tasks = []
    finish = run.finish
    monkeypatch.setattr(run, "finish", lambda *given: tasks.append(given[4]) or finish(*given))
    made = start(rank=2)
    (task,) = tasks
    kept = {
        name.replace(".parametrizations.weight.original", ".weight"): value
        for name, value in task.denoiser.state_dict().items()
        if ".parametrizations.weight.0." not in name
    }
    original = open_source(checkpoints("sd3-no-t5")).denoiser.state_dict()
    assert kept.keys() == original.keys()
    assert all(torch.equal(kept[name], value) for name, value in original.items())
    learned = [bool((each != 0).any()) for each in task.quantizers.adapters()]
    assert sum(learned) > 0.8 * len(learned), "all but those of text tokens in the last block"
    assert kinds(made.path, "Constant")["i8"] > 10
    assert psnr(picture(made.path), picture(artifacts("sd3-no-t5"))) > 20


def weights(task):
    return task.denoiser.state_dict()["transformer_blocks.0.attn.to_q.parametrizations.weight.original"]


def test_an_average_is_what_is_kept(start, no_artifact):
    averaged, last = (
        weights(start(out, of={"ema_decay": decay})) for out, decay in (("a", 0.999), ("b", None))
    )
    assert not torch.equal(averaged, last)
    torch.testing.assert_close(averaged, last, rtol=0, atol=5e-3)


@pytest.mark.parametrize("settings", [{"checkpointing": True}, {"quantizers_only": True}])
def test_ways_to_need_less(settings, start, no_artifact):
    task = start(steps=2, **settings)
    assert any((each != 0).any() for each in task.quantizers.ranges())


def test_without_a_teacher(start, no_artifact, monkeypatch):
    monkeypatch.setattr(run, "teacher_of", None)
    assert start(steps=1, losses=Losses(teacher=0.0)).teacher is None


def test_a_loss_that_is_no_number_ends_the_run(start, tmp_path):
    with pytest.raises(SfumatoError, match=r"(loss|gradients|finite).* lower"):
        start(steps=20, of={"rate": 1e9, "clip": 1e9})
    assert not (tmp_path / "out").exists()


def test_a_failed_end_is_done_again(start, tmp_path, monkeypatch):
    """A full disk after the training: nothing is half there, and the same call needs no training."""
    free = SimpleNamespace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr("sfumato.files.shutil.disk_usage", lambda _: free)
        patch.setattr("sfumato.train.pictures.check_space", ignore)
        with pytest.raises(SfumatoError, match="free some space"):
            start(steps=1)
    assert not (tmp_path / "out").exists()
    lines = []
    assert start(steps=1, say=lines.append).path == tmp_path / "out"
    assert not any(line.startswith("step ") for line in lines)


def test_a_disk_too_full_for_the_weights_leaves_the_checkpoint(start, tmp_path, monkeypatch):
    def full_disk(weights, file):
        file.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(run, "save_file", full_disk)
    with pytest.raises(SfumatoError, match=r"out\.run/transformer: no space left on the device"):
        start(steps=1)
    folder = run_folder(tmp_path / "out")
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 1
    assert not (tmp_path / "out").exists() and not list(folder.glob("*transformer*"))


def test_a_disk_too_full_for_samples_is_named(tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    base = SimpleNamespace(grid=lambda *_: Image.new("RGB", (8, 8)), guidance=1.0)
    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(SfumatoError, match=r"samples-5\.png: no space left on the device"):
        run._sample(base, ["a"], tmp_path / "samples-5.png")
    assert not list(tmp_path.glob("*samples*"))


def test_of_several_processes_the_main_one_speaks(start, monkeypatch):
    lines = []
    monkeypatch.setattr(run, "is_main", lambda: False)
    monkeypatch.setattr(run.loop, "run", ignore)
    assert start(steps=1, say=lines.append) is None
    assert not any("ranges of" in line for line in lines)


class TestMerging:
    def test_the_settings_go_before_the_recipe(self):
        recipe = load_recipe("int8")
        family = FAMILIES["sdxl"]
        assert with_merging(recipe, family, Settings()) is recipe
        changed = with_merging(recipe, family, Settings(token_merging=0.5, merging_method="pool"))
        own, before = (each.of("unet", "unet", True) for each in (changed, recipe))
        assert (own.token_merging, own.merging_method) == (0.5, "pool")
        assert own.model_copy(update={"token_merging": None, "merging_method": "match"}) == before
        assert changed.of("vae_decoder", "vae_decoder", False).token_merging is None
        off = with_merging(changed, family, Settings(token_merging=0.0))
        assert not off.of("unet", "unet", True).token_merging

    @pytest.mark.parametrize("ratio", [1.0, 0.76, -0.1, float("nan")])
    def test_shares_that_cannot_merge_are_refused(self, ratio):
        with pytest.raises(
            InvalidRequest, match=r"token_merging .*: must be a finite number from 0 to 0\.75"
        ):
            with_merging(load_recipe("int8"), FAMILIES["sd"], Settings(token_merging=ratio))

    @pytest.mark.parametrize("method", ["match", "pool"])
    def test_the_model_merges_as_its_training_did(self, method, start, monkeypatch):
        tasks = []
        finish = run.finish
        monkeypatch.setattr(run, "finish", lambda *given: tasks.append(given[4]) or finish(*given))
        made = start(steps=1, token_merging=0.5, merging_method=method)
        merged = made.manifest.token_merging
        assert (merged.ratio, merged.method) == (0.5, method)
        (task,) = tasks
        batch = task.draw(2, np.random.default_rng(0), torch.Generator().manual_seed(0))
        noised, _ = task.shown.noising.mix(batch[0], batch[3], batch[4])
        condition = task.shown.inputs(*batch[:3])
        with torch.no_grad():
            trained = run_denoiser(task.denoiser, noised, batch[4], condition)
            with task.plain():
                whole = run_denoiser(task.denoiser, noised, batch[4], condition)
            with task.quantizers.off():
                unmerged = run_denoiser(task.denoiser, noised, batch[4], condition)
        assert not torch.equal(unmerged, whole), "without quantizers it still merges"
        graph = core().read_model(made.path / "transformer" / "openvino_model.xml")
        compiled = core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        given = {**condition, "hidden_states": noised, "timestep": batch[4]}
        found = torch.from_numpy(compiled({name: value.numpy() for name, value in given.items()})[0].copy())
        assert (found - trained).square().mean() < 0.1 * (trained - whole).square().mean()


def run_denoiser(denoiser, noised, timesteps, condition):
    return denoiser(noised, timestep=timesteps, **condition, return_dict=False)[0]
