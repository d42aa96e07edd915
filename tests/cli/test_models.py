"""`sfumato models`: listing, inspecting, and finding damage."""

import json

import pytest

from sfumato.artifact import MANIFEST


def test_inspect_shows_parts_and_defaults(run, sketch):
    outcome = run("models", "inspect", sketch)
    assert outcome.code == 0
    assert "family sd" in outcome.out
    assert "text_encoder" in outcome.out
    assert "pndm, 4 steps, guidance 7.5" in outcome.out


def test_inspect_says_where_guidance_is_an_input(run, sketch):
    manifest = json.loads((sketch / MANIFEST).read_text())
    manifest["conditioning"]["guidance_embedding_dim"] = 256
    (sketch / MANIFEST).write_text(json.dumps(manifest))
    said = "pndm, 4 steps, guidance 7.5 as an input, no negative prompt"
    assert said in run("models", "inspect", sketch).out
    document = json.loads(run("models", "inspect", sketch, "--json").out)
    assert document["conditioning"]["guidance_embedding_dim"] == 256


def test_inspect_json_is_the_manifest(run, sketch):
    document = json.loads(run("models", "inspect", sketch, "--json").out)
    manifest = json.loads((sketch / MANIFEST).read_text())
    assert document["path"] == str(sketch)
    assert document["components"] == manifest["components"]
    assert document["bytes"] == sum(file["bytes"] for file in manifest["files"].values())


def test_own_models_are_listed_and_a_damaged_one_does_not_hide_them(run, sketch, monkeypatch):
    monkeypatch.setenv("SFUMATO_MODELS", str(sketch.parent))
    broken = sketch.parent / "broken"
    broken.mkdir()
    (broken / MANIFEST).write_text("{")
    outcome = run("models")
    assert outcome.code == 0
    assert "sketch       sd     64x64" in outcome.out
    assert "broken" not in outcome.out
    assert str(broken / MANIFEST) in outcome.err
    assert "sketch" in [row["name"] for row in json.loads(run("models", "--json").out)["models"]]


def test_list_is_one_json_object(run):
    assert isinstance(json.loads(run("models", "--json").out)["models"], list)


def test_verify_accepts_what_was_written(run, sketch):
    assert run("models", "verify", sketch).code == 0
    assert json.loads(run("models", "verify", sketch, "--json").out)["ok"] is True


def test_verify_names_a_changed_file(run, sketch):
    victim = sketch / "unet" / "openvino_model.bin"
    victim.write_bytes(victim.read_bytes()[::-1])
    outcome = run("models", "verify", sketch)
    assert outcome.code == 2
    assert str(victim) in outcome.error


@pytest.mark.parametrize("command", ["inspect", "verify"])
class TestDamage:
    """What both commands refuse, naming the file and what to do."""

    def test_truncated_weights(self, run, sketch, command):
        victim = sketch / "unet" / "openvino_model.bin"
        victim.write_bytes(victim.read_bytes()[:10])
        outcome = run("models", command, sketch)
        assert outcome.code == 2
        assert str(victim) in outcome.error
        assert "10 bytes" in outcome.error

    def test_missing_file(self, run, sketch, command):
        victim = sketch / "tokenizer" / "tokenizer.json"
        victim.unlink()
        outcome = run("models", command, sketch)
        assert outcome.code == 2
        assert str(victim) in outcome.error

    def test_missing_component(self, run, sketch, command):
        manifest = json.loads((sketch / MANIFEST).read_text())
        del manifest["components"]["vae_decoder"]
        (sketch / MANIFEST).write_text(json.dumps(manifest))
        outcome = run("models", command, sketch)
        assert outcome.code == 2
        assert "vae_decoder" in outcome.error

    def test_broken_manifest(self, run, sketch, command):
        (sketch / MANIFEST).write_text('{"format": 1, ')
        outcome = run("models", command, sketch)
        assert outcome.code == 2
        assert MANIFEST in outcome.error

    def test_folder_that_is_no_model(self, run, tmp_path, command):
        outcome = run("models", command, tmp_path)
        assert outcome.code == 2
        assert "not a model folder" in outcome.error
        assert "sfumato convert" in outcome.error

    def test_unknown_name(self, run, command):
        outcome = run("models", command, "no-such-model")
        assert outcome.code == 2
        assert "'no-such-model'" in outcome.error
