"""Pictures on disk: written whole, with the text that other tools read."""

import pytest
from PIL import Image

from sfumato.errors import InvalidRequest
from sfumato.runtime.png import parameters_text, save_png

SETTINGS = {
    "steps": 20,
    "sampler": "flow-euler",
    "guidance": 4.5,
    "seed": 7,
    "size": (128, 96),
    "model": "mini",
    "version": "0.1.0",
}
LINE = (
    "Steps: 20, Sampler: flow-euler, CFG scale: 4.5, Seed: 7, Size: 128x96, "
    "Model: mini, Version: sfumato 0.1.0"
)


def test_parameters_block():
    assert parameters_text("a cat", "a dog", **SETTINGS) == f"a cat\nNegative prompt: a dog\n{LINE}"
    assert parameters_text("a cat", None, **SETTINGS) == f"a cat\n{LINE}"


def test_names_with_separators_are_quoted():
    assert 'Model: "mini, mine", Version' in parameters_text("", None, **SETTINGS | {"model": "mini, mine"})


def test_picture_and_text_survive(tmp_path):
    image = Image.new("RGB", (16, 8), (200, 10, 30))
    save_png(image, tmp_path / "a.png", "a çat ✓\nSteps: 1")
    with Image.open(tmp_path / "a.png") as read:
        assert read.text == {"parameters": "a çat ✓\nSteps: 1"}
        assert read.tobytes() == image.tobytes()
    save_png(image, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as read:
        assert read.text == {}
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_failed_writing_keeps_the_old_picture(tmp_path, monkeypatch):
    image = Image.new("RGB", (16, 8))
    save_png(image, tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def stopped(self, partial, **options):
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        save_png(image, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_absent_folder_is_named(tmp_path):
    with pytest.raises(InvalidRequest, match=r"absent/a.png: cannot be written"):
        save_png(Image.new("RGB", (16, 8)), tmp_path / "absent" / "a.png")
