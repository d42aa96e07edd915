"""Names and writing of pictures."""

from pathlib import Path

import pytest
from PIL import Image

from sfumato.cli.output import MAX_SLUG, Destination, slug
from sfumato.errors import InvalidRequest

PICTURE = Image.new("RGB", (8, 8), "red")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(output: str | None, *, seed: int = 7, count: int = 1, prompt: str = "noto red apple") -> list[str]:
    destination = Destination(output, prompt)
    with destination.prepared():
        paths = [destination.save(PICTURE, seed + index, index, count, None) for index in range(count)]
    return [str(path) for path in paths]


def test_names_follow_prompt_and_seed():
    assert save(None) == ["noto-red-apple-7.png"]


def test_nothing_is_overwritten_by_a_chosen_name():
    assert [save(None)[0] for _ in range(3)] == [
        "noto-red-apple-7.png",
        "noto-red-apple-7-2.png",
        "noto-red-apple-7-3.png",
    ]


def test_a_named_file_is_replaced():
    assert save("apple.png") == save("apple.png") == ["apple.png"]
    assert len(list(Path().iterdir())) == 1


def test_several_pictures_of_one_name_are_numbered():
    assert save("apple.png", count=2) == ["apple-1.png", "apple-2.png"]


@pytest.mark.parametrize("output", ["fruit", "fruit/", "v1.5/"])
def test_anything_else_is_a_folder(output):
    assert save(output) == [f"{Path(output)}/noto-red-apple-7.png"]


def test_an_existing_folder_may_look_like_a_file():
    Path("set.png").mkdir()
    assert save("set.png") == ["set.png/noto-red-apple-7.png"]


def test_other_formats_are_refused_by_name():
    with pytest.raises(InvalidRequest, match=r"apple\.jpg.*apple\.png"):
        save("apple.jpg")


@pytest.mark.parametrize("output", ["x" * 300 + ".png", "x" * 300, "x" * 300 + "/a.png"])
def test_names_that_the_system_refuses(output):
    with pytest.raises(InvalidRequest, match="file name too long"):
        save(output)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("noto red apple", "noto-red-apple"),
        ("  A/B\\..C ", "a-b-c"),
        ("", "image"),
        ("!?", "image"),
        ("яблоко", "яблоко"),
    ],
)
def test_slug(prompt, name):
    assert slug(prompt) == name


def test_slug_of_a_long_prompt_fits_a_file_name():
    assert len(slug("яблоко " * 1000).encode()) <= MAX_SLUG
    assert save(None, prompt="apple " * 2000)


def test_a_name_as_long_as_the_system_takes():
    assert save("x" * 251 + ".png") == ["x" * 251 + ".png"]


def test_a_folder_made_for_nothing_goes_again():
    with pytest.raises(KeyboardInterrupt), Destination("new/deep/", "x").prepared():
        raise KeyboardInterrupt
    assert not Path("new").exists()


def test_a_folder_that_holds_something_stays():
    Path("old").mkdir()
    with pytest.raises(KeyboardInterrupt), Destination("old/new/", "x").prepared():
        raise KeyboardInterrupt
    assert Path("old").is_dir()
    assert not Path("old/new").exists()


def test_a_file_in_the_way_is_an_error():
    Path("taken").write_text("")
    with pytest.raises(InvalidRequest, match="taken"), Destination("taken/deep/", "x").prepared():
        pass


def test_a_picture_that_cannot_be_encoded_leaves_no_file():
    class Broken(Image.Image):
        def save(self, fp, format=None, **params):
            Path(fp).write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Destination("apple.png", "x").save(Broken(), 7, 0, 1, None)
    assert list(Path().iterdir()) == []
