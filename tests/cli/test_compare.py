"""`sfumato compare`: options, what is printed, and what is refused."""

import json
import shutil

import pytest

from sfumato.artifact import find_model


@pytest.fixture
def made(monkeypatch):
    """Leave the comparing out: `.asked` is what it was to do, and the report one of the tests'."""
    import reports

    import sfumato.compare

    class Made:
        asked = None

    def compare(models, out, **options):
        Made.asked = (list(models), out, options)
        options["on_progress"]("picture", 1, 1)
        return reports.make_report(out)[0]

    monkeypatch.setattr(sfumato.compare, "compare", compare)
    return Made


def test_it_prints_the_page(run, made, tmp_path):
    done = run("compare", "float", "int8", "-o", tmp_path / "out")
    assert done.code == 0
    assert done.out == f"{tmp_path / 'out' / 'report.html'}\n"
    assert "int8 is 1.90× smaller and 1.60× faster than float" in done.err


def test_options_arrive(run, made, tmp_path):
    out = tmp_path / "out"
    options = ["--reference", "torch:x", "--prompts", "p.txt", "--count", 3, "--steps", 4, "--size", "64x32"]
    options += ["--guidance", 2.5, "--seed", 9, "--device", "GPU", "--threads", 2, "--precision", "f32"]
    options += ["--token-merging", "0.2,0.4", "--merging-method", "pool", "--reuse", "off,fast"]
    assert run("compare", "a", "b", "c", *options, "--memory", "low", "-o", out).code == 0
    models, where, asked = made.asked
    del asked["on_progress"]
    assert (models, where) == (["a", "b", "c"], out)
    assert asked == {
        "reference": "torch:x",
        "prompts": "p.txt",
        "count": 3,
        "steps": 4,
        "size": (64, 32),
        "guidance": 2.5,
        "seed": 9,
        "device": "GPU",
        "threads": 2,
        "precision": "f32",
        "memory": "low",
        "token_merging": (0.2, 0.4),
        "merging_method": "pool",
        "reuse": ["off", "fast"],
    }


def test_json_is_all_there_is(run, made, tmp_path):
    out = tmp_path / "out"
    done = run("compare", "float", "int8", "-o", out, "--json", "-q")
    assert done.err == ""
    document = json.loads(done.out)
    assert document["paths"] == {
        "folder": str(out),
        "html": str(out / "report.html"),
        "json": str(out / "report.json"),
    }
    assert document["reference"] == "float"
    assert [each["model"]["name"] for each in document["models"]] == ["float", "int8"]


def test_for_real(run, tmp_path):
    again = shutil.copytree(find_model("mini"), tmp_path / "again")
    (tmp_path / "prompts.txt").write_text("noto red apple\na harbour\n")
    options = ["--prompts", tmp_path / "prompts.txt", "--steps", 1, "--json"]
    done = run("compare", again, "--reference", "mini", *options, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {name: value for name, value in json.loads(done.out).items() if name != "paths"} == written
    assert written["reference"] == "mini"
    assert any("icons only" in note for note in written["notes"])
    assert "picture 4/4" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mini"], "only 'mini'"),
        (["mini", "nimi"], "unknown model 'nimi'"),
        (["mini", "mini", "--size", "huge"], "'huge'"),
        (["mini", "mini", "--count", "0"], "count 0"),
        (["mini", "mini", "--prompts", "missing.txt"], "missing.txt"),
        (["mini", "mini", "--prompts", "latin.txt"], "line 2"),
        (["mini", "mini", "--prompts", "empty.txt"], "empty.txt"),
        (["mini", "mini", "--reference", "./nothing"], "nothing"),
        (["mini", "--reuse", "fast,quick"], "reuse 'quick': There is off, balanced, fast"),
        (["mini", "--reuse", "off"], "only 'mini'"),
        (["mini", "--reuse", "fast", "--steps", "4"], "reuse fast: 4 steps are too few; give 8"),
        (["torch:.", "torch:..", "--reuse", "fast"], "checkpoints in PyTorch have none"),
    ],
)
def test_bad_input(run, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes("noto cat\nnoto café\n".encode("latin-1"))
    (tmp_path / "empty.txt").touch()
    done = run("compare", *arguments, "-o", "out")
    assert done.code == 2
    assert said in done.error
    assert not (tmp_path / "out").exists()


def test_a_full_folder_is_kept(run, tmp_path):
    (tmp_path / "file").touch()
    done = run("compare", "mini", "mini", "-o", tmp_path)
    assert done.code == 2
    assert "exists already" in done.error
    assert (tmp_path / "file").exists()


def test_the_folder_must_be_named(run):
    done = run("compare", "mini", "mini")
    assert done.code == 2
    assert "-o" in done.error


def test_help_has_an_example(run):
    assert "sfumato compare ./sd15 ./sd15-int8 -o report/" in run("compare", "--help").out
