"""`sfumato recipes`: listing, showing, and checking one's own."""

import json
import subprocess
import sys
import tomllib

import pytest


def test_list_says_what_each_does(run):
    outcome = run("recipes")
    assert outcome.code == 0
    assert "int8-int4     the published one" in outcome.out
    assert "text_encoders int4 (128, 85%)" in outcome.out
    assert "vae int8, reuse balanced" in outcome.out
    assert "reuse fast, guidance_every" in outcome.out
    assert all(len(line) <= 110 for line in outcome.out.splitlines())


def test_list_json_is_one_object_with_the_same_recipes(run):
    rows = json.loads(run("recipes", "--json").out)["recipes"]
    assert [row["name"] for row in rows] == [
        line.split()[0] for line in run("recipes").out.splitlines() if not line.startswith(" ")
    ]
    assert all(row["denoiser"]["mode"] != "keep" for row in rows)


def test_show_prints_toml_that_is_the_same_recipe_again(run, tmp_path):
    shown = run("recipes", "show", "int8").out
    assert tomllib.loads(shown)["denoiser"]["mode"] == "int8"
    copy = tmp_path / "copy.toml"
    copy.write_text(shown, encoding="utf-8")
    assert run("recipes", "show", copy).out == shown


def test_show_json_says_the_same(run):
    document = json.loads(run("recipes", "show", "mixed", "--json").out)
    assert document == tomllib.loads(run("recipes", "show", "mixed").out)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('[transfomer]\nmode = "int8"', "[transfomer]: no such component; did you mean 'transformer'?"),
        ('[vae]\nmode = "int8"\nratio = 0.5', "ratio means nothing with mode 'int8'"),
        ("[vae", "is no TOML"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(run, tmp_path, text, answer):
    file = tmp_path / "own.toml"
    file.write_text(text)
    outcome = run("recipes", "show", file)
    assert outcome.code == 2
    assert outcome.error.startswith(f"error: recipe {file}: ")
    assert answer in outcome.error
    assert outcome.out == ""


def test_unknown_name_and_command(run):
    assert "did you mean 'int8'" in run("recipes", "show", "int").error
    assert run("recipes", "show", "int").code == 2
    assert "did you mean 'show'" in run("recipes", "shwo").error


def test_help_brings_nothing_heavy():
    heavy = "print('openvino' in sys.modules)"
    code = f"import sys; from sfumato.cli import main; main(['recipes', '--help']); {heavy}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    assert "sfumato recipes show int8" in done.stdout
