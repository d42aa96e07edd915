"""`sfumato train qat`: options, what is printed, what is refused."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sfumato.artifact import load_manifest

RECIPE = '[denoiser]\nmode = "int8"\n'


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two pictures with captions, beside a recipe for the denoiser alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text(RECIPE)
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(2):
        Image.fromarray(np.full((64, 64, 3), 90 * number, np.uint8)).save(folder / f"{number}.png")
    lines = [json.dumps({"file_name": f"{n}.png", "text": "a red apple"}) for n in range(2)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def small(monkeypatch):
    """Let the tiny model's layers count, which are below what is worth quantizing."""
    from sfumato.graphs import compress
    from sfumato.optimize import layers

    monkeypatch.setattr(layers, "SMALLEST", 64)
    monkeypatch.setattr(compress, "SMALLEST", 64)


@pytest.fixture
def asked(monkeypatch):
    """Leave the work out: what the command asks for."""
    import sfumato.train.qat.run

    found = {}

    def train(source, data, out, settings, plan, say, on_progress, on_sample):
        found.update(source=source, data=data, out=out, settings=settings, plan=plan)
        say("step 1/1")
        on_progress("hashing", 0, 1)
        on_sample(1, 1)
        return SimpleNamespace(manifest=SimpleNamespace(precision="int8", bytes=12345678))

    monkeypatch.setattr(sfumato.train.qat.run, "train", train)
    return found


def test_help_shows_how(run):
    outcome = run("train", "qat", "--help")
    assert outcome.code == 0
    assert "sfumato train qat models/mini-sd runs/mini-sd-int8 --data data/emoji" in outcome.out
    assert "-m sfumato train qat ./sd15 ./sd15-int8" in outcome.out, "by several processes"
    for option in ("--recipe", "--rank", "--ema", "--feature-loss", "--token-merging", "--json", "--quiet"):
        assert option in outcome.out
    assert "qat" in run("train", "--help").out


def test_help_brings_nothing_heavy():
    heavy = "print('torch' in sys.modules, 'openvino' in sys.modules)"
    code = f"import sys; from sfumato.cli import main; main(['train', 'qat', '--help']); {heavy}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False False\n")


def test_options_arrive(run, asked, tmp_path):
    options = (
        "--recipe w4a8 --steps 7 --batch 2 --accumulate 3 --rate 1e-4 --range-rate 2e-4 --schedule cosine"
    )
    options += " --data-loss 0 --teacher-loss 2 --feature-loss 0.5 --ema 0 --dropout 0.2 --samples 9 --rank 8"
    options += " --token-merging 0.5 --merging-method pool --checkpointing --eight-bit --seed 3"
    options += " --save-every 4 --sample-every 5 --data pictures"
    outcome = run("train", "qat", "sd15", tmp_path / "out", *options.split())
    assert outcome.code == 0, outcome.err
    settings, plan, losses = asked["settings"], asked["plan"], asked["settings"].losses
    assert (str(asked["source"]), str(asked["data"]), asked["out"]) == ("sd15", "pictures", tmp_path / "out")
    assert (settings.recipe, settings.samples, settings.dropout, settings.rank) == ("w4a8", 9, 0.2, 8)
    assert (settings.token_merging, settings.merging_method) == (0.5, "pool")
    assert (settings.checkpointing, settings.quantizers_only) == (True, False)
    assert (losses.data, losses.teacher, losses.features) == (0, 2, 0.5)
    assert (plan.steps, plan.batch, plan.accumulate, plan.seed) == (7, 2, 3, 3)
    assert (plan.rate, plan.rates, plan.schedule) == (1e-4, {"ranges": 2e-4}, "cosine")
    assert (plan.ema_decay, plan.eight_bit, plan.save_every, plan.sample_every) == (0, True, 4, 5)


def test_without_options_it_is_the_published_training(run, asked, tmp_path):
    assert run("train", "qat", "sd15", tmp_path / "out").code == 0
    settings, plan = asked["settings"], asked["plan"]
    assert (settings.recipe, settings.rank, settings.token_merging) == ("int8", 0, None)
    assert (plan.steps, plan.rate, plan.schedule, plan.ema_decay) == (4096, 1e-5, "constant", 0.9999)
    assert (settings.losses.data, settings.losses.teacher, settings.losses.features) == (1, 1, 0)


def test_what_is_printed(run, asked, tmp_path):
    out = tmp_path / "out"
    outcome = run("train", "qat", "sd15", out)
    assert outcome.out == f"{out}: int8, 12.3 MB\n"
    assert outcome.err.splitlines() == ["step 1/1", "hashing (1/1)", "step 1/1"]
    outcome = run("train", "qat", "sd15", out, "--json", "--quiet")
    assert json.loads(outcome.out) == {"path": str(out), "precision": "int8", "bytes": 12345678}
    assert outcome.err == ""


def test_it_makes_a_model_folder(run, small, checkpoint, data, tmp_path):
    out = tmp_path / "out"
    options = ["--data", data, "--recipe", "own.toml", "--steps", 1, "--batch", 2, "--samples", 2, "--json"]
    outcome = run("train", "qat", checkpoint, out, *options)
    assert outcome.code == 0, outcome.err
    manifest = load_manifest(out)
    assert json.loads(outcome.out) == {"path": str(out), "precision": "own", "bytes": manifest.bytes}
    assert "step 1/1" in outcome.err or "ranges of" in outcome.err
    assert run("models", "verify", out).code == 0
    assert run("generate", "a red apple", "-m", out, "--steps", 2, "-o", tmp_path / "a.png").code == 0
    again = run("train", "qat", checkpoint, out, *options)
    assert again.code == 2 and "exists already" in again.error


@pytest.fixture
def refused(run, checkpoint, data, tmp_path):
    """`refused(*options)`: the error of a command that must leave no model behind."""

    def refused(*options, source=checkpoint, folder=data, code=2):
        common = ["--data", folder, "--steps", 1, "--batch", 1, "--samples", 1]
        outcome = run("train", "qat", source, tmp_path / "out", *common, *options)
        assert outcome.code == code, outcome.err
        assert outcome.out == "" and not (tmp_path / "out").exists()
        return outcome.error

    return refused


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--recipe", "int-8"], "unknown recipe"),
        (["--recipe", "int4"], "leaves the unet's activations in floating point"),
        (["--token-merging", 1.0], "token_merging 1.0: must be a finite number from 0 to 0.75"),
        (["--token-merging", 0.5, "--merging-method", "mean"], "'mean'"),
        (["--steps", 0], "--steps"),
        (["--dropout", 1.5], "--dropout"),
        (["--rank", -1], "--rank"),
        (["--teacher-loss", -1], "--teacher-loss"),
        (["--data-loss", "nan"], "data loss nan: must be a finite number, 0 or more"),
        (["--feature-loss", "inf"], "features loss inf: must be a finite number, 0 or more"),
        (["--rate", -1], "rate -1.0: must be a finite number, 0 or more"),
        (["--rate", "nan"], "rate nan: must be a finite number, 0 or more"),
        (["--range-rate", -0.001], "rate of ranges -0.001: must be a finite number, 0 or more"),
        (["--dropout", "nan"], "dropout nan: must be a finite number from 0 to 1"),
        (["--ema", "nan"], "average's decay nan: must be a finite number from 0 to 1"),
    ],
)
def test_bad_options(options, answer, refused):
    assert answer in refused(*options)


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--data-loss", 0, "--teacher-loss", 0], "data, teacher and feature loss are all 0"),
        (["--quantizers-only", "--rank", 4], "quantizers only and rank 4: give one of them"),
        (["--merging-method", "pool"], "merging method 'pool': give a ratio"),
    ],
    ids=["nothing to minimize", "adapters that would not be trained", "a method for merging nothing"],
)
def test_options_without_use_are_refused(options, answer, refused):
    assert answer in refused(*options)


def test_pictures_without_captions(refused, data, tmp_path):
    (data / "metadata.jsonl").unlink()
    assert "has neither metadata.jsonl nor metadata.csv" in refused("--recipe", "own.toml")
    assert "no such folder" in refused("--recipe", "own.toml", folder=tmp_path / "none")


def test_checkpoints_that_cannot_be_used(refused, data, tmp_path):
    assert "model_index.json: missing" in refused(source=tmp_path / "absent")
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert "FluxPipeline" in refused(source=unknown)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("sd-inpaint", "is an inpainting model, whose denoiser takes 9 channels; train a checkpoint"),
        ("refiner", "is a refiner; train a checkpoint that makes pictures of prompts alone"),
    ],
)
def test_models_that_begin_with_a_picture(name, answer, refused, checkpoints, tmp_path):
    assert answer in refused("--recipe", "own.toml", source=checkpoints(name))
    assert not (tmp_path / "out.run").exists()


def test_a_loss_that_is_no_number_is_a_failure(refused, small):
    answer = refused("--recipe", "own.toml", "--rate", 1e9, "--steps", 30, code=1)
    assert "lower" in answer and "learning rate" in answer
