"""Previews: inside the message, and large enough to be looked at."""

import base64
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from sfumato.serve.ui.previews import INLINE, SHOWN, Shown, ShownPair, inlined


@pytest.mark.parametrize("size", [(8, 16), (16, 16), (2048, 1024)])
def test_a_preview_is_its_own_address(size: tuple[int, int]) -> None:
    address = inlined(Image.new("RGB", size, "red"))
    image = Image.open(BytesIO(base64.b64decode(address.removeprefix(INLINE))))
    assert max(image.size) == SHOWN
    assert image.width * size[1] == image.height * size[0]
    assert image.getpixel((0, 0)) == pytest.approx((255, 0, 0), abs=3)


def test_previews_go_to_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "copies"))
    preview = inlined(Image.new("RGB", (8, 8), "red"))
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    assert Shown().postprocess(preview).url == preview
    assert Shown().postprocess(str(picture)).path == str(picture)
    first, second = ShownPair().postprocess((preview, str(picture))).root
    assert (first.url, second.path) == (preview, str(picture))
    assert ShownPair().postprocess(None) is None
    assert not any((tmp_path / "copies").rglob("*.*"))
