"""The model that ships with the package, used as a person would after installing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from sfumato.artifact import embedded_models

MEGABYTE = 1_000_000


def generate(folder: Path, *arguments: str) -> dict:
    command = [sys.executable, "-m", "sfumato", "generate", "noto red apple", "--seed", "7", "--json"]
    done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_same_bytes_within_the_memory_budget(tmp_path):
    documents = [generate(tmp_path) for _ in range(2)]
    pictures = {(tmp_path / document["images"][0]["path"]).read_bytes() for document in documents}
    assert len(pictures) == 1
    assert max(document["peak_memory_bytes"] for document in documents) < 600 * MEGABYTE


def test_fits_the_wheel(tmp_path):
    archive = shutil.make_archive(str(tmp_path / "mini"), "zip", embedded_models()["mini"])
    assert Path(archive).stat().st_size < 30 * MEGABYTE


def test_is_whole_and_listed(run):
    assert run("models", "verify", "mini").code == 0
    assert "mini" in [model["name"] for model in json.loads(run("models", "--json").out)["models"]]
    nearest = run("generate", "x", "-m", "mimi")
    assert nearest.code == 2
    assert "did you mean 'mini'?" in nearest.error
