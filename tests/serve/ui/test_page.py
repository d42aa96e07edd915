"""The page as people use it: in a real browser, with the model that ships."""

import io
import re
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, expect

from browsing import PATIENCE, Opened
from sfumato import Pipeline
from sfumato.artifact import find_model

SEED = "#seed input"


def picture(locator: Locator) -> Image.Image:
    """The picture that an <img> shows, as the server sent it."""
    expect(locator).to_be_visible(timeout=PATIENCE)
    source = locator.get_attribute("src")
    assert source is not None
    body = locator.page.request.get(source).body()
    return Image.open(io.BytesIO(body)).convert("RGB")


def keep_seed(opened: Opened, seed: int) -> None:
    opened.page.fill(SEED, str(seed))
    opened.page.locator("#locked input").check()


def slide(opened: Opened, place: str, number: int) -> None:
    field = opened.page.locator(f"{place} input[type=number]")
    field.fill(str(number))
    field.press("Enter")


def long_work(opened: Opened) -> None:
    """Have pictures made that take minutes; the first steps are done."""
    slide(opened, "#count", 16)
    slide(opened, "#steps", 150)
    opened.generate("noto red apple")
    opened.said("#status", "of 2400")


@pytest.fixture
def orange(tmp_path: Path) -> Path:
    Image.new("RGB", (128, 128), "orange").save(tmp_path / "orange.png")
    return tmp_path / "orange.png"


def upload(opened: Opened, place: str, file: Path) -> None:
    opened.page.locator(f"{place} input[type=file]").first.set_input_files(file)
    opened.page.wait_for_timeout(1500)


def test_a_picture_is_that_of_the_pipeline(opened: Opened) -> None:
    keep_seed(opened, 7)
    opened.generate("noto red apple")
    opened.said("#status", "seed 7")
    shown = picture(opened.page.locator("#now img"))
    expected = Pipeline.load("mini")("noto red apple", seed=7).images[0]
    assert np.array_equal(np.asarray(shown), np.asarray(expected))
    assert opened.elsewhere == []


def test_the_seed_changes_unless_it_is_kept(opened: Opened) -> None:
    opened.generate("noto red apple")
    opened.said("#status", "seed")
    first = opened.page.input_value(SEED)
    opened.page.click("#go")
    expect(opened.page.locator(SEED)).not_to_have_value(first, timeout=PATIENCE)


def test_stop_stops(opened: Opened) -> None:
    long_work(opened)
    opened.page.click("#stop")
    opened.said("#status", "stopped")
    expect(opened.page.locator("#go")).to_be_enabled()


def test_several_pictures_can_be_looked_at(opened: Opened) -> None:
    slide(opened, "#count", 3)
    slide(opened, "#steps", 2)
    keep_seed(opened, 5)
    opened.generate("noto red apple")
    opened.said("#status", "seed 5 to 7")
    expect(opened.page.locator("#made img")).to_have_count(3, timeout=PATIENCE)


def test_begin_from_a_picture(opened: Opened, orange: Path) -> None:
    opened.page.get_by_label("from a picture").check()
    opened.generate("noto green apple")
    opened.said("#status", "there is no picture to begin from")
    upload(opened, "#picture", orange)
    expect(opened.page.locator("#picture img")).to_be_visible(timeout=PATIENCE)
    opened.page.click("#go")
    opened.said("#status", "seed")
    assert picture(opened.page.locator("#now img")).size == (128, 128)


def test_paint_a_mask(opened: Opened, orange: Path) -> None:
    opened.page.get_by_label("inpaint").check()
    upload(opened, "#mask", orange)
    canvas = opened.page.locator("#mask canvas").first
    expect(canvas).to_be_visible(timeout=PATIENCE)
    opened.generate("noto green apple")
    opened.said("#status", "nothing is painted")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse = opened.page.mouse
    mouse.move(x - 20, y)
    mouse.down()
    mouse.move(x, y, steps=5)
    mouse.move(x + 20, y, steps=5)
    mouse.up()
    opened.page.click("#go")
    opened.said("#status", "seed")
    pixels = np.asarray(picture(opened.page.locator("#now img")), int)
    same = (np.abs(pixels - [255, 165, 0]).max(-1) == 0).mean()
    assert 0.2 < same < 0.999  # what is not painted stays to the bit


def test_two_models_with_a_slider_between_them(opened: Opened) -> None:
    opened.tab("A/B")
    opened.page.fill("#versus-prompt textarea", "noto red apple")
    opened.page.click("#versus-go")
    opened.said("#versus-status", "A is on the left")
    expect(opened.page.locator("#measured")).to_contain_text("the same to the bit")  # mine is a copy of mini
    assert opened.page.locator("#slider img").count() >= 2
    assert opened.elsewhere == []


def test_another_model(opened: Opened) -> None:
    opened.page.click("#model input")
    opened.page.get_by_role("option", name=re.compile("^mine,")).click()
    opened.generate("noto red apple")
    opened.said("#status", "seed")
    opened.page.click("#model input")
    opened.page.keyboard.press("Escape")
    opened.tab("Gallery")
    opened.page.locator("#gallery button.thumbnail-item, #gallery .grid-container button").first.click()
    expect(opened.page.locator("#said textarea")).to_have_value(re.compile("Model: m"), timeout=PATIENCE)


def test_pictures_stay_after_a_reload_and_go_back_to_work(opened: Opened) -> None:
    opened.generate("noto green apple")
    opened.said("#status", "seed")
    seed = opened.page.input_value(SEED)
    opened.page.reload()
    expect(opened.page.locator("#model input")).not_to_have_value("", timeout=PATIENCE)
    opened.tab("Gallery")
    opened.page.locator("#gallery .grid-container button").first.click()
    expect(opened.page.locator("#said textarea")).to_have_value(re.compile(f"Seed: {seed}"), timeout=PATIENCE)
    opened.page.click("#send-text")
    expect(opened.page.locator("#prompt textarea")).to_have_value("noto green apple", timeout=PATIENCE)
    expect(opened.page.locator(SEED)).to_have_value(seed)
    opened.tab("Gallery")
    opened.page.locator("#gallery .grid-container button, #gallery .thumbnails button").first.click()
    opened.page.click("#send-picture")
    expect(opened.page.locator("#picture img")).to_be_visible(timeout=PATIENCE)


def test_two_people_at_once(open_page: Callable[..., Opened]) -> None:
    first, second = open_page(), open_page()
    long_work(first)
    second.generate("noto cat")
    second.said("#status", "waiting: one picture goes first")
    first.page.click("#stop")
    second.said("#status", "seed")
    first.said("#status", "stopped")


def test_a_browser_that_leaves_frees_the_model(open_page: Callable[..., Opened]) -> None:
    first = open_page()
    long_work(first)
    first.page.reload()
    second = open_page()
    began = time.monotonic()
    second.generate("noto cat")
    second.said("#status", "seed")
    assert time.monotonic() - began < 20  # all of the first one's pictures take longer


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("large.png", bytes(50_000_000), "exceed the maximum allowed size"),
        ("none.png", b"no picture at all", "is no picture that can be read"),
    ],
)
def test_uploads_that_are_refused(
    opened: Opened, tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    opened.page.get_by_label("from a picture").check()
    upload(opened, "#picture", tmp_path / name)
    opened.generate("noto cat")
    expect(opened.page.locator("body")).to_contain_text(re.compile(says, re.I), timeout=PATIENCE)


def test_an_upload_past_the_page_is_refused_too(address: str) -> None:
    files = {"files": ("large.png", bytes(50_000_000), "image/png")}
    assert httpx.post(f"{address}gradio_api/upload", files=files, timeout=60).status_code == 413


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 100,000 pixels wide and high."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_a_picture_too_large_to_decode(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb())
    opened.page.get_by_label("from a picture").check()
    upload(opened, "#picture", tmp_path / "bomb.png")
    opened.generate("noto cat")
    expect(opened.page.locator("body")).to_contain_text("too many pixels", timeout=PATIENCE)


@pytest.mark.parametrize(
    ("fill", "says"),
    [
        ({"Width": "0"}, "width 0: must be a whole number"),
        ({"Width": "100000"}, "size 100000x128: too many pixels"),
        ({"Width": "130"}, "size 130x128: both sides must be multiples of"),
        ({"Width": "", "Height": ""}, "width"),
        ({"Seed": "-1"}, "seed -1: must be a whole number"),
        ({"Skip-layer guidance": "<b>7"}, "skipped layers '<b>7'"),
        ({"Skip-layer guidance": "999"}, "skipped layer 999"),
    ],
)
def test_fields_at_their_extremes(opened: Opened, fill: dict[str, str], says: str) -> None:
    opened.page.get_by_role("button", name="More settings").click()
    for label, value in fill.items():
        opened.page.get_by_label(label, exact=True).first.fill(value)
    opened.page.locator("#locked input").check()
    opened.generate("noto cat")
    opened.said("#status", says)
    expect(opened.page.locator("#go")).to_be_enabled()


def test_a_prompt_without_end(opened: Opened) -> None:
    opened.generate("apple " * 5000)
    opened.said("#status", "characters: at most 10000 are read")


def test_a_model_that_is_removed_while_it_is_loaded(opened: Opened, own_model: Path) -> None:
    opened.page.click("#model input")
    opened.page.get_by_role("option", name=re.compile("^mine,")).click()
    opened.generate("noto red apple")
    opened.said("#status", "seed")
    shutil.rmtree(own_model)
    try:
        opened.page.click("#go")
        opened.said("#status", "model 'mine': is not there, or no longer")
        opened.page.reload()
        expect(opened.page.locator("#model input")).to_have_value(re.compile("^mini,"), timeout=PATIENCE)
        opened.generate("noto red apple")
        opened.said("#status", "seed")
    finally:
        shutil.copytree(find_model("mini"), own_model)


def test_nothing_is_wider_than_a_phone(open_page: Callable[..., Opened]) -> None:
    opened = open_page(390, 844)
    for name in ("Create", "A/B", "Gallery", "Convert & optimize"):
        if not opened.page.get_by_role("tab", name=name).is_visible():
            opened.page.get_by_label("More tabs").click()
            opened.page.locator(".overflow-dropdown button", has_text=name).click()
        else:
            opened.tab(name)
        opened.page.wait_for_timeout(300)
        wide = opened.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, name
    opened.tab("Create")
    opened.generate("noto red apple")
    opened.said("#status", "seed")


def test_dark_and_light(opened: Opened) -> None:
    colour = "getComputedStyle(document.querySelector('#prompt textarea')).backgroundColor"
    before = opened.page.evaluate(colour)
    opened.page.click("#appearance")
    assert opened.page.evaluate(colour) != before
