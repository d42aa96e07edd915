"""The models that are offered."""

import shutil
from pathlib import Path

import pytest

from sfumato.artifact import find_model
from sfumato.errors import ArtifactError, InvalidRequest
from sfumato.serve.catalog import Catalog, label


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFUMATO_MODELS", str(tmp_path / "named"))
    shutil.copytree(find_model("mini"), tmp_path / "named" / "mine")
    shutil.copytree(find_model("mini"), tmp_path / "elsewhere" / "other")
    return tmp_path


def test_those_asked_for_go_first(own: Path) -> None:
    assert list(Catalog([own / "elsewhere" / "other"]).models()) == ["other", "mini", "mine"]
    assert list(Catalog(["mine"]).models()) == ["mine", "mini"]
    assert list(Catalog().models()) == ["mini", "mine"]


def test_two_folders_of_one_name_are_told_apart(own: Path) -> None:
    shutil.copytree(own / "elsewhere" / "other", own / "third" / "mini")
    models = Catalog([own / "third" / "mini"]).models()
    assert models["mini"].path == own / "third" / "mini"
    assert len(models) == 3


def test_a_model_that_went_away(own: Path) -> None:
    catalog = Catalog(["mine"])
    (own / "named" / "mine" / "sfumato.json").unlink()
    assert list(catalog.models()) == ["mini"]
    with pytest.raises(InvalidRequest, match="model 'mine': is not there, or no longer; there is: mini"):
        catalog.find("mine")


@pytest.mark.parametrize("name", [None, 5, "", "x" * 5000, "../mini"])
def test_a_name_that_is_none(own: Path, name: object) -> None:
    with pytest.raises(InvalidRequest, match="is not there"):
        Catalog().find(name)


def test_what_was_asked_for_must_be_there(own: Path) -> None:
    with pytest.raises((ArtifactError, InvalidRequest), match="nix"):
        Catalog([own / "nix"])


def test_a_label_says_size_and_speed(own: Path) -> None:
    mine = Catalog().find("mine")
    assert label("mine", mine) == "mine, fp16, 29.9 MB"
    assert label("mine", mine, 0.0123) == "mine, fp16, 29.9 MB, 0.012 s a step"
