"""From a model to a smaller one to its picture, all on the page."""

import shutil

from playwright.sync_api import expect

from browsing import PATIENCE, Opened
from sfumato.artifact import load_manifest, models_folder


def test_a_model_that_was_made_here_makes_pictures(opened: Opened) -> None:
    page = opened.page
    newest = page.locator("#jobs .job").first
    opened.tab("Convert & optimize")
    page.click("#start-optimize")
    expect(newest).to_contain_text("running", timeout=PATIENCE)
    page.click("#start-optimize")
    expect(page.get_by_text("writes it already")).to_be_visible(timeout=PATIENCE)
    page.click("#job-stop")
    expect(newest).to_contain_text("stopped", timeout=PATIENCE)

    page.click("#recipe input")
    page.get_by_role("option", name="int8-weights", exact=True).click()
    expect(page.locator("#optimize-name").locator("input, textarea")).to_have_value("mini-int8-weights")
    page.click("#start-optimize")
    expect(newest).to_contain_text("done", timeout=2 * PATIENCE)
    try:
        assert load_manifest(models_folder() / "mini-int8-weights").precision == "int8-weights"
        assert not (models_folder() / "mini-int8").exists()
        opened.tab("Create")
        opened.choose("#model", "mini-int8-weights")
        opened.generate("noto red apple")
        opened.said("#status", "seed")
        assert opened.wrong == []
    finally:
        shutil.rmtree(models_folder() / "mini-int8-weights")
