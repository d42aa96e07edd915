"""Model folders: complete or refused, written whole or not at all."""

import errno
import json
import multiprocessing
import shutil
from pathlib import Path

import pytest

from sfumato.artifact import MANIFEST, find_model, known_models, load_artifact, seal, verify, write_artifact
from sfumato.errors import ArtifactError, InvalidRequest, SfumatoError

FIELDS = {
    "name": "toy",
    "family": "sd",
    "precision": "fp16",
    "components": {
        "text_encoder": {"kind": "clip", "tokenizer": "tokenizer", "max_tokens": 16, "hidden_states": 3},
        "unet": {"kind": "unet"},
        "vae_decoder": {"kind": "vae_decoder"},
    },
    "latents": {
        "channels": 4,
        "factor": 8,
        "scale": 0.18215,
        "size_multiple": 8,
        "default_size": (64, 64),
    },
    "sampling": {"sampler": "euler", "prediction": "epsilon", "steps": 4, "guidance": 5, "scheduler": {}},
}


def fill(folder: Path) -> None:
    for name in FIELDS["components"]:
        (folder / name).mkdir()
        (folder / name / "openvino_model.xml").write_text(f"<{name}/>")
        (folder / name / "openvino_model.bin").write_bytes(bytes(100))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    with write_artifact(tmp_path / "toy") as folder:
        fill(folder)
        seal(folder, **FIELDS)
    return tmp_path / "toy"


def edit(toy: Path, **changes: object) -> None:
    document = json.loads((toy / MANIFEST).read_text())
    (toy / MANIFEST).write_text(json.dumps({**document, **changes}))


def test_what_was_written_is_read_back(toy):
    manifest = load_artifact(toy).manifest
    assert manifest.name == "toy"
    assert manifest.latents.default_size == (64, 64)
    assert set(manifest.files) == {
        f"{name}/openvino_model.{suffix}" for name in FIELDS["components"] for suffix in ("xml", "bin")
    } | {"tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"}
    assert manifest.bytes == sum(path.stat().st_size for path in toy.rglob("*.*") if path.name != MANIFEST)
    assert verify(toy) == manifest
    assert [path.name for path in toy.parent.iterdir()] == ["toy"]


def test_a_folder_that_does_not_say_how_steps_run_runs_them_in_full(toy):
    edit(toy, sampling=FIELDS["sampling"])
    sampling = load_artifact(toy).manifest.sampling
    assert (sampling.reuse, sampling.guidance_every) == ("off", 1)
    edit(toy, sampling=FIELDS["sampling"] | {"reuse": "fast", "guidance_every": 2})
    sampling = load_artifact(toy).manifest.sampling
    assert (sampling.reuse, sampling.guidance_every) == ("fast", 2)


def test_not_a_model(tmp_path):
    with pytest.raises(ArtifactError, match="no such model folder"):
        load_artifact(tmp_path / "absent")
    with pytest.raises(ArtifactError, match=r"not a model folder \(sfumato.json is missing\)"):
        load_artifact(tmp_path)


def test_truncated_file_is_named_on_loading(toy):
    (toy / "unet" / "openvino_model.bin").write_bytes(bytes(99))
    with pytest.raises(ArtifactError, match=r"unet/openvino_model.bin: damaged \(99 bytes, expected 100\)"):
        load_artifact(toy)


def test_changed_byte_is_named_by_verify(toy):
    (toy / "unet" / "openvino_model.bin").write_bytes(bytes(99) + b"1")
    load_artifact(toy)
    with pytest.raises(ArtifactError, match=r"unet/openvino_model.bin: changed"):
        verify(toy)


def test_missing_file_is_named(toy):
    (toy / "unet" / "openvino_model.bin").unlink()
    with pytest.raises(ArtifactError, match=r"unet/openvino_model.bin: missing"):
        load_artifact(toy)


def test_link_out_of_the_folder_is_refused(toy, tmp_path):
    outside = tmp_path / "outside.bin"
    (toy / "unet" / "openvino_model.bin").rename(outside)
    (toy / "unet" / "openvino_model.bin").symlink_to(outside)
    with pytest.raises(ArtifactError, match="leads out of the model folder"):
        load_artifact(toy)


def test_links_in_a_circle_are_refused(toy):
    weights = toy / "unet" / "openvino_model.bin"
    weights.unlink()
    weights.symlink_to(weights.name)
    with pytest.raises(ArtifactError, match=r"unet/openvino_model.bin: (cannot be read|missing)"):
        load_artifact(toy)


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "a/../../b", "a\\..\\b", "C:/x", "", "a\nb", "a\0b", "\u202etxt.xml"]
)
def test_path_out_of_the_folder_is_refused(toy, path):
    edit(toy, files={path: {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(ArtifactError, match="not a plain path inside the folder"):
        load_artifact(toy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "dalle"}, "unknown family 'dalle'; known are sd, sdxl, sd3"),
        ({"components": {}}, "component 'text_encoder' is missing"),
        ({"components": {**FIELDS["components"], "vae_encoder": {"kind": "vae_encoder"}}}, "list of files"),
        ({"components": {**FIELDS["components"], "transformer": {"kind": "mmdit"}}}, "no component 'transfo"),
        ({"components": {**FIELDS["components"], "text_encoder": {"kind": "clip"}}}, "lacks its tokenizer"),
        ({"format": 2}, "format"),
        ({"surprise": 1}, "surprise"),
        ({"sampling": {**FIELDS["sampling"], "steps": 0}}, "sampling.steps"),
        ({"sampling": {**FIELDS["sampling"], "steps": 10**9}}, "sampling.steps"),
        ({"sampling": {**FIELDS["sampling"], "guidance": float("nan")}}, "sampling.guidance"),
        ({"sampling": {**FIELDS["sampling"], "reuse": "quick"}}, "sampling.reuse"),
        ({"sampling": {**FIELDS["sampling"], "guidance_every": 0}}, "sampling.guidance_every"),
        ({"sampling": {**FIELDS["sampling"], "guidance_every": 17}}, "sampling.guidance_every"),
        ({"latents": {**FIELDS["latents"], "channels": 10**9}}, "latents.channels"),
        ({"latents": {**FIELDS["latents"], "channels": 10**400}}, "latents.channels"),
        ({"latents": {**FIELDS["latents"], "default_size": [10**9, 10**9]}}, "latents.default_size"),
        ({"latents": {**FIELDS["latents"], "default_size": [64, 68]}}, "not in multiples of 8"),
        ({"latents": {**FIELDS["latents"], "factor": 16}}, "no multiple of factor 16"),
        ({"latents": {**FIELDS["latents"], "scale": 0}}, "latents.scale"),
        ({"conditioning": {"t5_tokens": 10**9}}, "conditioning.t5_tokens"),
        ({"name": "\ud800"}, "surrogates not allowed"),
        ({"source": [1]}, "source"),
    ],
)
def test_manifest_that_makes_no_sense_is_refused_in_one_line(toy, changes, message):
    edit(toy, **changes)
    with pytest.raises(ArtifactError, match=message) as caught:
        load_artifact(toy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("\xff", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('{"name": "one", "name": "two"}', "key 'name' is given twice"),
        ('{"files": {"a": {"bytes": 1, "bytes": 2}}}', "key 'bytes' is given twice"),
        ("1" * 10_000, "not valid JSON"),
        ("[]", "valid dictionary"),
        (" " * (16 * 2**20 + 1), "no file of at most"),
    ],
)
def test_manifest_that_is_no_plain_json(toy, text, message):
    (toy / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=message) as caught:
        load_artifact(toy)
    assert "\n" not in str(caught.value)


def test_scheduler_nested_too_deeply(toy):
    document = json.loads((toy / MANIFEST).read_text())
    document["sampling"]["scheduler"] = "DEEP"
    deep = "[" * 500 + "]" * 500
    (toy / MANIFEST).write_text(json.dumps(document).replace('"DEEP"', '{"shift": ' + deep + "}"))
    with pytest.raises(ArtifactError):
        load_artifact(toy)


def test_every_file_that_is_read_must_be_listed(toy):
    document = json.loads((toy / MANIFEST).read_text())
    del document["files"]["tokenizer/tokenizer_config.json"]
    edit(toy, files=document["files"])
    with pytest.raises(ArtifactError, match=r"tokenizer_config.json is missing from the list"):
        load_artifact(toy)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_interrupted_writing_leaves_nothing(tmp_path, interruption):
    with pytest.raises(interruption), write_artifact(tmp_path / "toy") as folder:
        fill(folder)
        raise interruption
    assert not list(tmp_path.iterdir())


def test_leftover_of_a_killed_run_is_removed_but_not_a_running_one(tmp_path):
    (tmp_path / ".toy.partial-killed" / "unet").mkdir(parents=True)
    with write_artifact(tmp_path / "toy") as running:
        fill(running)
        seal(running, **FIELDS)
        assert {path.name for path in tmp_path.iterdir()} == {running.name}
        other = multiprocessing.get_context("spawn").Process(target=write_and_fail, args=(tmp_path / "toy",))
        other.start()
        other.join()
        assert running.is_dir()
    assert verify(tmp_path / "toy")


def write_and_fail(target: Path) -> None:
    with write_artifact(target):
        raise SystemExit


def test_existing_folder_is_not_overwritten(toy):
    with pytest.raises(InvalidRequest, match="exists already"), write_artifact(toy):
        pass
    assert verify(toy)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Exception from src/frontends:\nbasic_ios::clear: iostream error\n"),
    ],
)
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path, error):
    with pytest.raises(SfumatoError, match="no space left on the device"), write_artifact(tmp_path / "toy"):
        raise error
    assert not list(tmp_path.iterdir())


def test_unwritable_place(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InvalidRequest, match="cannot be written"),
        write_artifact(tmp_path / "file" / "below" / "toy"),
    ):
        pass


def test_unsealed_folder_does_not_appear(tmp_path):
    with pytest.raises(ArtifactError, match="not sealed"), write_artifact(tmp_path / "toy") as folder:
        fill(folder)
    assert not list(tmp_path.iterdir())


def test_unknown_model_lists_the_known_and_the_nearest(monkeypatch, toy, tmp_path):
    monkeypatch.setattr("sfumato.artifact.embedded_models", lambda: {"toy": toy})
    monkeypatch.chdir(tmp_path / "toy")
    assert find_model("toy") == toy
    assert find_model(toy) == toy
    for impossible in ("x" * 5000, "~nobody-of-that-name/x", "toy/unet/openvino_model.bin/x"):
        with pytest.raises(InvalidRequest, match="unknown model"):
            find_model(impossible)
    with pytest.raises(InvalidRequest, match=r"'toyy': did you mean 'toy'\? .*\(toy\)"):
        find_model("toyy")


def test_own_models_are_found_by_name(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_MODELS", str(tmp_path / "own"))
    assert "mine" not in known_models()
    shutil.copytree(toy, tmp_path / "own" / "mine")
    (tmp_path / "own" / "unfinished").mkdir()
    assert find_model("mine") == tmp_path / "own" / "mine"
    assert "unfinished" not in known_models()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SFUMATO_MODELS", "~/own")
    assert find_model("mine") == tmp_path / "own" / "mine"
