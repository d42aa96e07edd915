"""A page in a browser, as tests use it."""

from dataclasses import dataclass, field

from playwright.sync_api import Page, expect

PATIENCE = 60_000
"""Milliseconds to wait for what a page is to show."""


@dataclass
class Opened:
    """A page, and what it asked of other hosts than its own."""

    page: Page
    elsewhere: list[str] = field(default_factory=list)

    def said(self, place: str, text: str) -> None:
        """Wait until a line of the page says something."""
        expect(self.page.locator(place)).to_contain_text(text, timeout=PATIENCE)

    def generate(self, prompt: str) -> None:
        self.page.fill("#prompt textarea", prompt)
        self.page.click("#go")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()
