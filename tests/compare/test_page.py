"""The page in a browser: alone, without complaints, and usable by mouse, by keyboard and on a phone."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import reports
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from sfumato.compare.report import write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REMEDY = "no Chromium; on Debian: apt-get install chromium"
pytestmark = pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason=REMEDY)

QUIET = (
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
)
NAMES = ("float <b>", "int8", "int4")
PROMPTS = ("noto red apple", "</script><img src=x onerror=alert(1)>")


@dataclass
class Opened:
    """A page, what it asked for, and what it complained about."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None, REMEDY
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[f"--{option}" for option in QUIET]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    report, folder = reports.make_report(tmp_path_factory.mktemp("page") / "made", NAMES, PROMPTS)
    write(report, folder)
    for picture in (folder / "pictures").iterdir():
        picture.unlink()  # the page has its own
    return folder / "report.html"


@pytest.fixture
def show(browser: Browser, html: Path) -> Iterator[Callable[..., Opened]]:
    """`show(width=..., scheme=...)`: the page in a window of its own."""
    contexts = []

    def show(width: int = 1280, scheme: str = "light", **options: object) -> Opened:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        contexts.append(context)
        opened = Opened(context.new_page())
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.on("console", lambda message: opened.complaints.append(message.text))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on("dialog", lambda dialog: opened.complaints.append(dialog.message))
        opened.page.goto(html.as_uri())
        return opened

    yield show
    for context in contexts:
        context.close()


def clip(frame: Locator) -> float:
    """The share of the frame's width in which its left picture is seen."""
    style = frame.locator(".over").evaluate("each => getComputedStyle(each).clipPath")
    hidden = re.fullmatch(r"inset\(0(?:px|%)? (?:calc\(100% - )?([\d.]+)%\)? 0(?:px|%)? 0(?:px|%)?\)", style)
    assert hidden, style
    return float(hidden[1]) if "calc" in style else 100 - float(hidden[1])


def shown(page: Page, selector: str) -> str:
    return str(page.locator(selector).first.evaluate("each => each.src"))


def test_it_asks_for_nothing_and_complains_of_nothing(show, html):
    opened = show()
    opened.page.wait_for_load_state("networkidle")
    assert [url for url in opened.requests if not url.startswith("data:")] == [html.as_uri()]
    assert opened.complaints == []


def test_its_policy_is_in_force(show):
    opened = show()
    opened.page.evaluate("new Image().src = 'http://127.0.0.1:9/x.png'")
    opened.page.wait_for_function("document.readyState == 'complete'")
    opened.page.wait_for_timeout(100)
    assert any("Content Security Policy" in said for said in opened.complaints)


def test_every_picture_is_there(show):
    images = show().page.locator("img").evaluate_all("all => all.map(each => each.naturalWidth)")
    assert len(images) == 2 * (2 + 3 + 3)  # in the slider, of every model, and of every pair
    assert all(width == reports.SIDE for width in images)


def test_hostile_text_is_text(show):
    page = show().page
    assert PROMPTS[1] in page.locator(".sample h3").nth(1).inner_text()
    assert page.locator("#left option").first.inner_text() == NAMES[0]
    assert page.locator("script").count() == 1


def test_slider_by_keyboard(show):
    page = show().page
    frame = page.locator(".frame").first
    frame.locator("input").focus()
    assert clip(frame) == 50
    page.keyboard.press("ArrowRight")
    assert clip(frame) == 51
    page.keyboard.press("End")
    assert clip(frame) == 100
    page.keyboard.press("Home")
    assert clip(frame) == 0
    assert clip(page.locator(".frame").nth(1)) == 50
    assert NAMES[0] in str(frame.locator("input").get_attribute("aria-valuetext"))


def test_slider_by_mouse(show):
    page = show().page
    frame = page.locator(".frame").first
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()
    assert box
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.5, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, middle, steps=4)
    page.mouse.up()
    assert clip(frame) == pytest.approx(80, abs=2)


def test_every_control_has_a_name(show):
    page = show().page
    for control in ("input", "button", "select", "svg"):
        for each in page.locator(control).all():
            named = each.evaluate("each => each.ariaLabel || (each.labels || [])[0]?.textContent")
            assert named and named.strip()


def test_chooser_swaps_pictures_and_the_map(show):
    page = show().page
    own = {i: shown(page, f"img[data-model='{i}']") for i in range(3)}
    assert (shown(page, ".over"), shown(page, ".under")) == (own[0], own[1])
    assert page.locator(".sample").first.locator("[data-pair]:visible").get_attribute("data-pair") == "0-1"
    page.locator("#right").select_option("2")
    assert shown(page, ".under") == own[2]
    assert page.locator(".tag.right").first.inner_text() == "int4"
    assert page.locator(".sample").first.locator("[data-pair]:visible").get_attribute("data-pair") == "0-2"
    page.locator("#swap").click()
    assert (shown(page, ".over"), shown(page, ".under")) == (own[2], own[0])
    assert page.locator(".sample").first.locator("[data-pair]:visible").get_attribute("data-pair") == "0-2"


def test_chooser_never_shows_a_model_beside_itself(show):
    page = show().page
    page.locator("#left").select_option("1")
    assert (page.locator("#left").input_value(), page.locator("#right").input_value()) == ("1", "0")
    assert page.locator(".sample").first.locator("[data-pair]:visible").count() == 1


def test_keyboard_reaches_everything(show):
    page = show().page
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className || ''"))
        reached.add(page.evaluate("document.activeElement.tagName"))
    assert {"left", "right", "swap", "scroll", "INPUT"} <= reached


def contrast(page: Page, selector: str) -> float:
    """Between an element's text and the page (WCAG 2.1)."""
    text, paper = page.evaluate(
        """selector => [getComputedStyle(document.querySelector(selector)).color,
                        getComputedStyle(document.body).backgroundColor]""",
        selector,
    )
    lights = []
    for colour in (text, paper):
        channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        lights.append(sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))
    return (max(lights) + 0.05) / (min(lights) + 0.05)


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_light_and_dark(show, scheme, dark):
    page = show(scheme=scheme).page
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(int(value) for value in re.findall(r"\d+", paper)[:3]) < 64) is dark
    for selector in ("h1", ".asked", ".eyebrow", "tbody th[scope=row]", "#meaning dd", "footer"):
        assert contrast(page, selector) >= 4.5, selector


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_wider_than_the_screen(show, width):
    page = show(width=width).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.scrollWidth") <= width


def test_it_can_be_read_without_scripts(show):
    page = show(java_script_enabled=False).page
    assert page.locator("h1").inner_text().startswith("int4 is")
    assert page.locator(".strip img").first.is_visible()
    assert not page.locator(".chooser").is_visible()
