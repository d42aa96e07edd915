"""`sfumato optimize`: options, what is printed, what is refused, and what an interruption leaves."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from sfumato.artifact import load_manifest
from sfumato.errors import InvalidRequest


@pytest.fixture
def asked(monkeypatch, artifact):
    """Leave the work out: what the command asks for."""
    import sfumato.artifact
    import sfumato.optimize

    found = {}

    def optimize(model, out, **options):
        found.update(options, model=model, out=out)
        options["on_progress"]("calibrating", 0, 2)
        options["on_sample"](3, 4)
        options["on_progress"]("hashing", 1, 2)
        return sfumato.artifact.load_artifact(artifact)

    monkeypatch.setattr(sfumato.optimize, "optimize", optimize)
    return found


def test_help_shows_how(run):
    outcome = run("optimize", "--help")
    assert outcome.code == 0
    assert "sfumato optimize ./sd15 ./sd15-int8 --recipe int8" in outcome.out
    for option in ("--recipe", "--prompts", "--samples", "--threads", "--json", "--quiet"):
        assert option in outcome.out


def test_help_brings_nothing_heavy():
    heavy = "print('openvino' in sys.modules)"
    code = f"import sys; from sfumato.cli import main; main(['optimize', '--help']); {heavy}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


def test_options_arrive(run, asked, tmp_path):
    out = tmp_path / "out"
    options = ["--recipe", "own.toml", "--prompts", "captions.txt", "--samples", 30, "--threads", 2]
    assert run("optimize", "mini", out, *options).code == 0
    assert (asked["model"], asked["out"], asked["recipe"]) == ("mini", out, "own.toml")
    assert (str(asked["prompts"]), asked["samples"], asked["threads"]) == ("captions.txt", 30, 2)
    assert run("optimize", "mini", out).code == 0
    assert (asked["recipe"], asked["prompts"], asked["samples"], asked["threads"]) == (
        "int8",
        None,
        None,
        None,
    )


def test_progress_goes_to_standard_error(run, asked, tmp_path):
    outcome = run("optimize", "mini", tmp_path / "out")
    assert outcome.err.splitlines() == ["calibrating (1/2)", "sample 3/4", "hashing (2/2)"]
    assert outcome.out.count("\n") == 1
    quiet = run("optimize", "mini", tmp_path / "out", "--quiet")
    assert (quiet.code, quiet.err) == (0, "")


def test_it_makes_a_model_folder(run, artifact, tmp_path):
    out = tmp_path / "out"
    outcome = run("optimize", artifact, out, "--samples", 2)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{out}: sd, int8, ")
    assert load_manifest(out).recipe.samples == 2
    assert run("models", "inspect", out).code == 0
    assert run("generate", "a red apple", "-m", out, "--steps", 2, "-o", tmp_path / "a.png").code == 0
    assert (tmp_path / "a.png").is_file()


def test_json_is_one_object(run, artifact, tmp_path):
    outcome = run("optimize", artifact, tmp_path / "out", "--recipe", "int8-weights", "--json")
    document = json.loads(outcome.out)
    assert document.keys() == {
        *("model", "path", "family", "recipe", "samples"),
        *("reuse", "guidance_every", "bytes", "seconds"),
    }
    assert (document["reuse"], document["guidance_every"]) == ("off", 1)
    assert document["model"] == "out"
    assert (document["family"], document["recipe"], document["samples"]) == ("sd", "int8-weights", 0)
    assert document["bytes"] == load_manifest(tmp_path / "out").bytes
    assert "optimizing unet" in outcome.err


def test_how_the_result_samples_is_said(run, artifact, tmp_path):
    recipe = tmp_path / "own.toml"
    recipe.write_text('[vae]\nmode = "int8-weights"\n[sampling]\nreuse = "fast"\nguidance_every = 2')
    outcome = run("optimize", artifact, tmp_path / "out", "--recipe", recipe)
    assert outcome.out.startswith(f"{tmp_path / 'out'}: sd, own, reuse fast, guidance_every 2, ")


def test_an_unknown_recipe_offers_the_nearest(run, artifact, tmp_path):
    outcome = run("optimize", artifact, tmp_path / "out", "--recipe", "int9")
    assert (outcome.code, outcome.out) == (2, "")
    assert "unknown recipe 'int9': did you mean 'int8'?" in outcome.error


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--samples", 0], "samples 0: must be a whole number from 1 to 10000"),
        (["--samples", "many"], "'many' is not a valid integer"),
        (["--threads", 0], "0 is not in the range x>=1"),
        (["--prompts", "none.txt"], "prompts 'none.txt': cannot be read"),
        (["--recipe", "none.toml"], "recipe none.toml: cannot be read"),
        (["--recipe", "int8", "--max-drop", 0.1], "has no [search]"),
        (["--recipe", "mixed", "--max-drop", 2], "must be a finite number from 0 to 1"),
        (["--recipie", "int8"], "--recipe"),
    ],
)
def test_bad_options_are_one_line(options, answer, run, artifact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run("optimize", artifact, "out", *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert answer in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_bad_models_are_one_line(run, artifact, tmp_path):
    assert "unknown model 'minni': did you mean 'mini'?" in run("optimize", "minni", tmp_path / "out").error
    assert "not a model folder" in run("optimize", tmp_path, tmp_path / "out").error
    taken = run("optimize", artifact, artifact)
    assert taken.code == 2
    assert "exists already" in taken.error
    assert run("optimize", artifact).code == 2


def test_damaged_and_optimized_models_are_one_line(run, copy, tmp_path):
    assert run("optimize", copy, tmp_path / "out", "--recipe", "int4").code == 0
    again = run("optimize", tmp_path / "out", tmp_path / "again")
    assert again.code == 2
    assert "optimized already (recipe 'int4')" in again.error
    graph = copy / "unet" / "openvino_model.xml"
    graph.write_bytes(graph.read_bytes().replace(b"<layer", b"<lawyer", 1)[: graph.stat().st_size])
    for recipe in ("int8", "int4"):
        outcome = run("optimize", copy, tmp_path / "damaged", "--recipe", recipe)
        assert outcome.code == 2, outcome.err
        assert "unet/openvino_model.xml" in outcome.error
    shutil.rmtree(copy / "unet")
    assert "missing" in run("optimize", copy, tmp_path / "damaged").error


def test_ctrl_c_leaves_no_folder_and_the_next_run_goes_on(spawn, run, artifact, tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    process = spawn("optimize", artifact, out, "--samples", 5000)
    kept = tmp_path / "cache" / "calibration"
    deadline = time.monotonic() + 120
    while not list(kept.glob("*/*.npz")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.strip().splitlines()[-1].startswith("interrupted; nothing was written")
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))
    assert list(kept.glob("*/*.npz"))


def test_a_full_disk_is_one_line(on_small_disk, artifact):
    outcome = on_small_disk("1m", "optimize", artifact, "out", "--samples", 1)
    assert outcome.code == 1
    assert "are needed" in outcome.error
    assert outcome.out == ""


def test_errors_of_the_library_keep_their_code(run, monkeypatch, tmp_path):
    import sfumato.optimize

    def refuse(*_, **__):
        raise InvalidRequest("no")

    monkeypatch.setattr(sfumato.optimize, "optimize", refuse)
    outcome = run("optimize", "mini", tmp_path / "out", "--json")
    assert (outcome.code, outcome.out, outcome.error) == (2, "", "error: no")
