"""The page as people use it: in a real browser, with the model that ships."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from browsing import PATIENCE, SEED, Opened, picture
from sfumato import Pipeline
from sfumato.artifact import models_folder


@pytest.fixture
def orange(tmp_path: Path) -> Path:
    Image.new("RGB", (128, 128), "orange").save(tmp_path / "orange.png")
    return tmp_path / "orange.png"


def test_a_picture_is_that_of_the_pipeline(opened: Opened) -> None:
    opened.keep_seed(7)
    opened.generate("noto red apple")
    opened.said("#status", "seed 7")
    shown = picture(opened.page.locator("#now img"))
    expected = Pipeline.load("mini")("noto red apple", seed=7).images[0]
    assert np.array_equal(np.asarray(shown), np.asarray(expected))
    assert opened.elsewhere == []


def test_the_seed_changes_unless_it_is_kept(opened: Opened) -> None:
    opened.slide("#steps", 2)
    opened.generate("noto red apple")
    opened.said("#status", "seed")
    first = opened.page.input_value(SEED)
    opened.page.click("#go")
    expect(opened.page.locator(SEED)).not_to_have_value(first, timeout=PATIENCE)


def test_stop_stops(opened: Opened) -> None:
    opened.long_work()
    opened.page.click("#stop")
    opened.said("#status", "stopped")
    expect(opened.page.locator("#go")).to_be_enabled()


def test_several_pictures_can_be_looked_at(opened: Opened) -> None:
    opened.slide("#count", 3)
    opened.slide("#steps", 2)
    opened.keep_seed(5)
    opened.generate("noto red apple")
    opened.said("#status", "seed 5 to 7")
    expect(opened.page.locator("#made img")).to_have_count(3, timeout=PATIENCE)


def test_begin_from_a_picture(opened: Opened, orange: Path) -> None:
    opened.page.get_by_label("from a picture").check()
    opened.generate("noto green apple")
    opened.said("#status", "there is no picture to begin from")
    opened.upload("#picture", orange)
    expect(opened.page.locator("#picture img")).to_be_visible(timeout=PATIENCE)
    opened.page.click("#go")
    opened.said("#status", "seed")
    assert picture(opened.page.locator("#now img")).size == (128, 128)


def test_paint_a_mask(opened: Opened, orange: Path) -> None:
    opened.page.get_by_label("inpaint").check()
    canvas = opened.page.locator("#mask canvas").first
    expect(canvas).to_be_visible(timeout=PATIENCE)
    opened.page.locator("#mask input[type=file]").first.set_input_files(orange)
    opened.page.wait_for_timeout(1500)  # nothing says when the picture is on the canvas
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
    assert opened.wrong == []


def test_repaint_a_picture_of_the_gallery(opened: Opened) -> None:
    opened.slide("#steps", 2)
    opened.generate("noto red apple")
    opened.said("#status", "seed")
    opened.look_at_newest("noto red apple")
    opened.page.click("#send-mask")
    expect(opened.page.locator("#mask canvas").first).to_be_visible(timeout=PATIENCE)
    opened.page.wait_for_timeout(1500)
    opened.page.click("#go")
    opened.said("#status", "nothing is painted")  # the picture has arrived
    assert opened.wrong == []


def test_two_models_with_a_slider_between_them(opened: Opened) -> None:
    opened.tab("A/B")
    opened.page.fill("#versus-prompt textarea", "noto red apple")
    opened.page.click("#versus-go")
    opened.said("#versus-status", "A is on the left")
    expect(opened.page.locator("#measured")).to_contain_text("the same to the bit")  # mine is a copy of mini
    assert opened.page.locator("#slider img").count() >= 2
    assert opened.elsewhere == []


def test_another_model(opened: Opened) -> None:
    opened.slide("#steps", 3)
    opened.choose("#model", "mine")
    expect(opened.page.locator("#steps input[type=number]")).to_have_value("20", timeout=PATIENCE)
    opened.generate("noto red apple")
    opened.said("#status", "seed")
    opened.look_at_newest("Steps: 20")


def test_pictures_stay_after_a_reload_and_go_back_to_work(opened: Opened) -> None:
    opened.slide("#steps", 3)
    opened.generate("noto green apple")
    opened.said("#status", "seed")
    seed = opened.page.input_value(SEED)
    opened.page.reload()
    opened.ready()
    opened.look_at_newest(f"Seed: {seed}")
    opened.page.click("#send-text")
    expect(opened.page.locator("#prompt textarea")).to_have_value("noto green apple", timeout=PATIENCE)
    expect(opened.page.locator(SEED)).to_have_value(seed)
    expect(opened.page.locator("#steps input[type=number]")).to_have_value("3")
    opened.tab("Gallery")
    opened.page.click("#send-picture")
    expect(opened.page.locator("#picture img")).to_be_visible(timeout=PATIENCE)


def test_the_picture_that_is_shown_is_the_one_that_goes(open_page: Callable[..., Opened]) -> None:
    first = open_page()
    for prompt in ("noto cat", "noto dog"):
        first.slide("#steps", 1)
        first.generate(prompt)
        expect(first.page.locator("#made")).to_be_hidden()
        first.said("#status", "seed")
        first.page.wait_for_timeout(300)
    first.look_at_newest("noto dog")
    second = Opened(first.page.context.new_page())
    second.page.goto(first.page.url)
    second.ready()
    second.slide("#steps", 1)
    second.generate("noto fox")
    second.said("#status", "seed")
    first.tab("Create")
    first.tab("Gallery")
    expect(first.page.locator("#gallery .thumbnails button")).to_have_count(3, timeout=PATIENCE)
    expect(first.page.locator("#said textarea")).to_have_value(re.compile("noto dog"))
    first.page.click("#remove")
    expect(first.page.locator("#said textarea")).to_have_value(re.compile("noto cat"), timeout=PATIENCE)
    expect(first.page.locator("#gallery .thumbnails button")).to_have_count(2)
    expect(first.page.locator("#gallery .thumbnails button").last).to_have_class(re.compile("selected"))


def test_merged_tokens_make_another_picture(opened: Opened) -> None:
    opened.page.get_by_role("button", name="More settings").click()
    opened.keep_seed(7)
    opened.slide("#steps", 3)
    opened.slide("#merging", 0.5)
    opened.generate("noto red apple")
    opened.said("#status", "seed 7")
    expected = Pipeline.load("mini", token_merging=0.5)("noto red apple", seed=7, steps=3).images[0]
    shown = picture(opened.page.locator("#now img"))
    assert np.array_equal(np.asarray(shown), np.asarray(expected))


@pytest.fixture
def two_stages(artifacts: Callable[[str], Path]) -> Iterator[None]:
    """A base model and its refiner, `sdxl` and `refiner`."""
    folders = [models_folder() / name for name in ("sdxl", "refiner")]
    for folder in folders:
        shutil.copytree(artifacts(folder.name), folder)
    yield
    for folder in folders:
        shutil.rmtree(folder)


def test_two_stages_and_back_to_them(two_stages: None, opened: Opened) -> None:
    opened.choose("#model", "sdxl")
    expect(opened.page.locator("#size input")).to_have_value(re.compile("64x64"), timeout=PATIENCE)
    opened.page.get_by_role("button", name="Two stages").click()
    opened.choose("#refiner", "refiner")
    opened.slide("#steps", 5)
    opened.generate("a red apple")
    opened.said("#status", "seed")
    opened.choose("#model", "mini")
    expect(opened.page.locator("#size input")).to_have_value(re.compile("128x128"), timeout=PATIENCE)
    opened.look_at_newest("Refiner: refiner\nRefiner switch at: 0.8")
    opened.page.click("#send-text")
    expect(opened.page.locator("#model input")).to_have_value(re.compile("^sdxl,"), timeout=PATIENCE)
    expect(opened.page.locator("#steps input[type=number]")).to_have_value("5")
    expect(opened.page.locator("#size input")).to_have_value("64x64")


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
