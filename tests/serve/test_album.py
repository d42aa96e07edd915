"""Pictures that stay with the browser that made them."""

from pathlib import Path

import pytest
from PIL import Image

from sfumato.errors import InvalidRequest
from sfumato.runtime.png import read_parameters
from sfumato.serve import album as albums
from sfumato.serve.album import Album

PICTURE = Image.new("RGB", (8, 8), "red")
SAID = "noto red apple\nSteps: 4, Sampler: euler, Seed: 7"


def test_each_owner_has_its_own(tmp_path: Path) -> None:
    album = Album(tmp_path / "pictures")
    mine, theirs = album.owner(None), album.owner("")
    assert mine != theirs
    first = album.add(mine, PICTURE, 7, SAID)
    second = album.add(mine, PICTURE, 7, SAID)
    assert album.pictures(mine) == [second, first]
    assert album.pictures(theirs) == []
    assert read_parameters(first).prompt == "noto red apple"
    album.remove(theirs, first)
    assert first.exists()
    album.remove(mine, first)
    assert album.pictures(mine) == [second]


@pytest.mark.parametrize("claimed", ["../../../etc", "a/b", "x" * 23, 5, None, "", ["a"]])
def test_a_browser_cannot_name_a_folder(tmp_path: Path, claimed: object) -> None:
    album = Album(tmp_path)
    assert album.owner(claimed) != claimed
    assert album.pictures(claimed) == []


def test_an_owner_keeps_its_name(tmp_path: Path) -> None:
    owner = Album(tmp_path).owner(None)
    assert Album(tmp_path).owner(owner) == owner


def test_pictures_go_with_the_server_unless_they_are_to_stay(tmp_path: Path) -> None:
    passing, lasting = Album(), Album(tmp_path / "kept")
    paths = [album.add(album.owner(None), PICTURE, 7, None) for album in (passing, lasting)]
    passing.close()
    lasting.close()
    assert [path.exists() for path in paths] == [False, True]


def test_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(albums, "MOST_PICTURES", 3)
    album = Album()
    owner = album.owner(None)
    made = [album.add(owner, PICTURE, seed, None) for seed in range(5)]
    assert album.pictures(owner) == made[:1:-1]
    album.close()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequest, match="file"):
        Album(tmp_path / "file" / "pictures")
