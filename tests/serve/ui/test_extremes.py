"""The page where something is wrong, too much, or in somebody's way."""

import errno
import re
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from browsing import PATIENCE, Opened
from sfumato.artifact import find_model


def test_text_in_prompts_is_text(opened: Opened) -> None:
    hostile = "<img src=x onerror=alert(1)> ${1} {{x}}"
    opened.slide("#steps", 1)
    opened.generate(hostile)
    opened.said("#status", "seed")
    opened.look_at_newest("^<img src=x")
    assert opened.page.locator("img[src=x]").count() == 0
    assert opened.wrong == []


def test_one_generation_at_a_time_for_one_page(opened: Opened) -> None:
    opened.long_work()
    expect(opened.page.locator("#go")).to_be_disabled()
    opened.page.press("#prompt textarea", "Shift+Enter")
    opened.page.click("#stop")
    opened.said("#status", "stopped; nothing was kept")
    opened.page.wait_for_timeout(500)
    opened.said("#status", "stopped; nothing was kept")


def test_two_people_at_once(open_page: Callable[..., Opened]) -> None:
    first, second = open_page(), open_page()
    first.long_work()
    second.generate("noto cat")
    second.said("#status", "waiting: one picture goes first")
    first.page.click("#stop")
    second.said("#status", "seed")
    first.said("#status", "stopped")


def test_a_browser_that_leaves_frees_the_model(open_page: Callable[..., Opened]) -> None:
    first = open_page()
    first.long_work()
    first.page.reload()
    second = open_page()
    began = time.monotonic()
    second.generate("noto cat")
    second.said("#status", "seed")
    assert time.monotonic() - began < 20  # all of the first one's pictures take longer


def test_an_upload_that_is_too_large(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bytes(50_000_000))
    opened.page.get_by_label("from a picture").check()
    opened.page.locator("#picture input[type=file]").first.set_input_files(tmp_path / "large.png")
    expect(opened.page.locator("body")).to_contain_text("exceed the maximum allowed size", timeout=PATIENCE)


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 100,000 pixels wide and high."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"no picture at all", "is no picture that can be read"), (bomb(), "too many pixels")],
    ids=["text", "bomb"],
)
def test_pictures_that_are_none(opened: Opened, tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "picture.png").write_bytes(content)
    opened.page.get_by_label("from a picture").check()
    opened.upload("#picture", tmp_path / "picture.png")
    opened.generate("noto cat")
    expect(opened.page.locator("body")).to_contain_text(says, timeout=PATIENCE)
    expect(opened.page.locator("#go")).to_be_enabled()


def test_fields_at_their_extremes(opened: Opened) -> None:
    opened.page.get_by_role("button", name="More settings").click()
    opened.page.locator("#locked input").check()
    for label, value, says in (
        ("Width", "0", "width 0: must be a whole number"),
        ("Width", "100000", "size 100000x128: the model knows positions for sides of 512 at most"),
        ("Width", "130", "size 130x128: both sides must be multiples of"),
        ("Width", "", "width: give a whole number"),
        ("Seed", "-1", "seed -1: must be a whole number"),
        ("Seed", "9007199254740992", "at most"),
        ("Skip-layer guidance", "<b>7", "skipped layers '<b>7'"),
        ("Skip-layer guidance", "999", "skipped layer 999"),
    ):
        field = opened.page.get_by_label(label, exact=True).first
        before = field.input_value()
        field.fill(value)
        opened.generate("noto cat")
        opened.said("#status", says)
        expect(opened.page.locator("#go")).to_be_enabled()
        field.fill(before)


def test_a_prompt_without_end(opened: Opened) -> None:
    opened.generate("apple " * 5000)
    opened.said("#status", "characters: at most 10000 are read")


def test_a_model_that_is_removed_while_it_is_loaded(opened: Opened, own_model: Path) -> None:
    opened.choose("#model", "mine")
    opened.slide("#steps", 1)
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


def test_a_full_disk(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("sfumato.serve.album.save_png", full)
    opened.slide("#steps", 1)
    opened.generate("noto red apple")
    opened.said("#status", "no space left on the device; free some")
    expect(opened.page.locator("#go")).to_be_enabled()


def test_a_browser_that_remembers_rubbish(opened: Opened) -> None:
    opened.page.evaluate("localStorage.setItem('sfumato-owner', '{rubbish')")
    opened.page.reload()
    opened.ready()
    opened.slide("#steps", 1)
    opened.generate("noto red apple")
    opened.said("#status", "seed")
    opened.look_at_newest("noto red apple")
