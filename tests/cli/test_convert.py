"""`sfumato convert`: what it prints, and that an interruption leaves nothing."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from sfumato.cli.convert import parse_lora
from sfumato.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "file", "scale"),
    [
        ("x.safetensors", "x.safetensors", 1.0),
        ("x.safetensors:0.5", "x.safetensors", 0.5),
        ("./a:b/x.safetensors:-1", "./a:b/x.safetensors", -1.0),
        ("C:\\loras\\x.safetensors", "C:\\loras\\x.safetensors", 1.0),
    ],
)
def test_lora_and_scale(text, file, scale):
    assert parse_lora(text) == (Path(file), scale)


@pytest.mark.parametrize("text", ["x.safetensors:strong", "x.safetensors:nan", "x.safetensors:"])
def test_scale_that_is_none_is_named(text):
    with pytest.raises(InvalidRequest, match="FILE:SCALE"):
        parse_lora(text)


def test_converts_and_reports(run, checkpoint, tmp_path):
    outcome = run("convert", checkpoint, tmp_path / "out", "--precision", "fp32", "--json")
    document = json.loads(outcome.out)
    assert outcome.code == 0
    assert set(document) == {"model", "path", "family", "precision", "bytes", "seconds"}
    assert (document["family"], document["precision"]) == ("sd", "fp32")
    assert run("models", "verify", tmp_path / "out").code == 0


def test_token_merging_is_a_share_of_the_tokens(run, checkpoint, tmp_path):
    outcome = run("convert", checkpoint, tmp_path / "out", "--token-merging", "1.0")
    assert outcome.code == 2
    assert "token merging 1.0: must be a share of the tokens from 0 to 0.75" in outcome.error
    assert not (tmp_path / "out").exists()


def test_existing_model_is_not_replaced(run, checkpoint, copy):
    outcome = run("convert", checkpoint, copy)
    assert outcome.code == 2
    assert "holds a model already; remove it" in outcome.error
    assert run("models", "verify", copy).code == 0


def test_existing_folder_is_not_touched(run, checkpoint, tmp_path):
    (tmp_path / "kept").write_text("")
    outcome = run("convert", checkpoint, tmp_path)
    assert outcome.code == 2
    assert str(tmp_path) in outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_missing_source(run, tmp_path):
    outcome = run("convert", tmp_path / "nothing", tmp_path / "out")
    assert outcome.code == 2
    assert str(tmp_path / "nothing") in outcome.error


def test_missing_component(run, checkpoint, tmp_path):
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    shutil.rmtree(source / "vae")
    outcome = run("convert", source, tmp_path / "out")
    assert outcome.code == 2
    assert "vae" in outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_pickle_is_refused_with_the_way_out(run, checkpoint, tmp_path):
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    for file in source.rglob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    outcome = run("convert", source, tmp_path / "out")
    assert outcome.code == 2
    assert ".bin" in outcome.error
    assert "pickle" in outcome.error
    assert "safetensors" in outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(("size", "says"), [("500k", "at least"), ("1000k", "no space left")])
def test_full_disk_before_and_during_the_work(on_small_disk, checkpoint, size, says):
    outcome = on_small_disk(size, "convert", checkpoint, "models/out", "--quiet")
    assert outcome.code == 1
    assert says in outcome.error
    assert outcome.out == "", "neither a report nor a file"


def test_interrupt_leaves_nothing_and_a_second_run_completes(run, spawn, checkpoint, tmp_path):
    process = spawn("convert", checkpoint, tmp_path / "out")
    assert process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.strip().splitlines()[-1] == "interrupted; nothing was written"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    assert run("convert", checkpoint, tmp_path / "out").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_interrupt_at_the_very_end_owns_up_to_the_folder(run, checkpoint, tmp_path, monkeypatch):
    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sfumato.convert.layout.load_artifact", stop)
    outcome = run("convert", checkpoint, tmp_path / "out")
    assert (outcome.code, outcome.err.splitlines()[-1]) == (1, f"interrupted; {tmp_path / 'out'} is complete")
    assert run("models", "verify", tmp_path / "out").code == 0


def test_killed_conversion_is_cleared_away(run, spawn, checkpoint, tmp_path):
    process = spawn("convert", checkpoint, tmp_path / "out")
    assert process.stderr.readline()
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
    assert run("convert", checkpoint, tmp_path / "out").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
