"""A page with a password, and without the tab that reads and writes the server's files."""

from playwright.sync_api import Browser, expect

from browsing import PATIENCE
from sfumato.serve.ui.run import Settings, serving


def test_who_knows_the_password_comes_in(browser: Browser) -> None:
    with serving(Settings(models=("mini",), password="wörd", jobs=False)) as (_, address):
        page = browser.new_page()
        page.goto(address)
        name, password = page.get_by_label("username"), page.get_by_label("password")
        for word in ("", "word", "wörd"):
            expect(page.locator("#model")).to_have_count(0)
            name.fill("anybody")
            password.fill(word)
            page.get_by_role("button", name="Login").click()
            page.wait_for_timeout(300)
        expect(page.locator("#model input")).not_to_have_value("", timeout=PATIENCE)
        tabs = [tab.inner_text() for tab in page.get_by_role("tab").all()]
        assert tabs == ["Create", "A/B", "Gallery"]
        page.close()
