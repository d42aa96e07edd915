"""A page in a browser, as tests use it."""

import io
import re
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, expect

PATIENCE = 60_000
"""Milliseconds to wait for what a page is to show."""
SEED = "#seed input"
PICTURES = "#gallery .grid-container button, #gallery .thumbnails button"


@dataclass
class Opened:
    """A page, what it asked of other hosts than its own, and the errors that its console shows."""

    page: Page
    elsewhere: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def ready(self) -> None:
        """Wait until the page has its models."""
        expect(self.page.locator("#model input")).not_to_have_value("", timeout=PATIENCE)

    def said(self, place: str, text: str) -> None:
        """Wait until a line of the page says something."""
        expect(self.page.locator(place)).to_contain_text(text, timeout=PATIENCE)

    def generate(self, prompt: str) -> None:
        self.page.fill("#prompt textarea", prompt)
        self.page.click("#go")

    def long_work(self) -> None:
        """Have pictures made that take minutes; the first steps are done."""
        self.slide("#count", 16)
        self.slide("#steps", 150)
        self.generate("noto red apple")
        self.said("#status", "of 2400")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def choose(self, place: str, name: str) -> None:
        """Choose a model of a list."""
        self.page.click(f"{place} input")
        self.page.get_by_role("option", name=re.compile(f"^{name},")).click()
        expect(self.page.locator(f"{place} input")).to_have_value(re.compile(f"^{name},"))

    def slide(self, place: str, number: float) -> None:
        field = self.page.locator(f"{place} input[type=number]")
        field.fill(str(number))
        field.press("Enter")

    def keep_seed(self, seed: int) -> None:
        self.page.fill(SEED, str(seed))
        self.page.locator("#locked input").check()

    def upload(self, place: str, file: Path) -> None:
        with self.page.expect_response(re.compile("gradio_api/upload"), timeout=PATIENCE):
            self.page.locator(f"{place} input[type=file]").first.set_input_files(file)
        self.page.wait_for_timeout(300)  # the form takes what the server said

    def look_at_newest(self, says: str) -> None:
        """Choose the newest picture in the gallery, whose text says something."""
        self.tab("Gallery")
        self.page.locator(PICTURES).first.click()
        expect(self.page.locator("#said textarea")).to_have_value(re.compile(says), timeout=PATIENCE)


def picture(locator: Locator) -> Image.Image:
    """The picture that an <img> shows, as the server sent it."""
    expect(locator).to_have_attribute("src", re.compile("^http"), timeout=PATIENCE)
    source = locator.get_attribute("src")
    assert source is not None
    body = locator.page.request.get(source).body()
    return Image.open(io.BytesIO(body)).convert("RGB")
