"""The tab of jobs: what its forms ask for, what it shows, and that it works in a browser."""

import sys
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from playwright.sync_api import Browser, Dialog, expect

from browsing import PATIENCE
from sfumato.errors import InvalidRequest
from sfumato.optimize.recipe import ComponentRecipe, builtin
from sfumato.serve.jobs import Job, Jobs
from sfumato.serve.ui.errors import toasts
from sfumato.serve.ui.jobs import jobs_tab, model_name, start_conversion, start_optimization
from sfumato.serve.ui.jobs_html import described, in_words, overview

NAMES = ("source", "convert-name")
HOSTILE = "/<img src=x onerror=alert(1)>${document.title='x'}{{value}}"
SCRIPT = """
import json, sys, time
source = sys.argv[sys.argv.index("--") + 1]
print("converting unet (2/4)", file=sys.stderr, flush=True)
if source.startswith("/"):
    print(f"error: {source}: no such file or folder", file=sys.stderr), sys.exit(2)
time.sleep(60 if source == "slow" else 0)
print(json.dumps({"arguments": sys.argv[1:]}))
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    made = Jobs(tmp_path / "models", command=[sys.executable, "-S", str(script)])
    yield made
    made.close()


def arguments(jobs: Jobs, job: Job) -> list[str]:
    end = time.monotonic() + 20
    while not jobs.get(job.id).ended:
        assert time.monotonic() < end
        time.sleep(0.02)
    result = jobs.get(job.id).result
    assert result is not None
    return list(result["arguments"])


def job(**values: object) -> Job:
    plain: dict[str, Any] = {
        "id": 1,
        "kind": "convert",
        "title": "convert a -> b",
        "name": "b",
        "state": "running",
    }
    plain |= {"progress": 0.25, "stage": "hashing", "seconds": 65, "left": 30, "log": ()}
    return Job(**{**plain, "result": None, "error": None, **values})


def test_what_the_conversion_form_says(jobs: Jobs) -> None:
    made = start_conversion(jobs, "org/sd 1.5", "", "fp16", None, 1, 0, False)
    assert made.name == "sd-1.5"
    assert arguments(jobs, made)[2:-3] == ["--precision=fp16"]
    made = start_conversion(jobs, "x", " named ", "int4", "a.safetensors", 0.5, 0.25, True)
    assert arguments(jobs, made)[2:-3] == [
        "--weights=int4",
        "--without-t5",
        "--lora=a.safetensors:0.5",
        "--token-merging=0.25",
    ]


def test_what_the_optimization_form_says(jobs: Jobs) -> None:
    made = start_optimization(jobs, "mini", "a", "int8", 30)
    assert arguments(jobs, made)[2:-3] == ["--recipe=int8", "--samples=30"]
    made = start_optimization(jobs, "mini", "b", "int4", 30)
    assert arguments(jobs, made)[2:-3] == ["--recipe=int4"]  # which refuses samples
    for model, recipe, samples in ((None, "int4", 1), ("mini", "int9", 1), ("mini", "int8", 0)):
        with pytest.raises(InvalidRequest):
            start_optimization(jobs, model, "c", recipe, samples)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("./sd15/", "sd15"),
        ("/a/Some Model v1.safetensors", "Some-Model-v1"),
        ("org/name@main", "name"),
        ("..", ""),
        ("x" * 90, "x" * 64),
    ],
)
def test_names_are_proposed_that_can_be(source: str, name: str) -> None:
    assert model_name(source) == name


def test_a_job_says_how_far_it_is() -> None:
    shown = overview([job()])
    for text in ("convert a -&gt; b", "running 25%", "width:25.0%", "hashing · 1 min · about 30 s of"):
        assert text in shown
    assert "bar" not in overview([job(state="failed", error="why")])


def test_the_newest_job_is_first() -> None:
    shown = overview([job(title="older"), job(title="newer")])
    assert shown.index("newer") < shown.index("older")


@pytest.mark.parametrize("key", ["title", "stage", "error"])
def test_hostile_text_is_text(key: str) -> None:
    assert "<img" not in overview([job(**{key: HOSTILE})])


def test_an_error_is_one_line_of_text() -> None:
    with pytest.raises(gr.Error) as caught, toasts():
        raise InvalidRequest(f"name {HOSTILE}: wrong")
    assert "<" not in str(caught.value.message)
    assert not caught.value.print_exception
    with pytest.raises(gr.Error, match="unexpected KeyError"), toasts():
        raise KeyError("x")


def test_every_recipe_is_described() -> None:
    recipes = builtin()
    for recipe in recipes.values():
        shown = described(recipe)
        assert escape(recipe.description) in shown
        assert shown.count("<dt>") == len(recipe.components) + (recipe.sampling is not None)
    assert "reuse fast, the negative prompt at key steps" in described(recipes["fast"])
    merging = ComponentRecipe(mode="int8-weights", token_merging=0.5)
    assert in_words(merging) == "8-bit weights; 50% of the tokens merged"
    said = {name: in_words(recipe.components["denoiser"]) for name, recipe in recipes.items()}
    assert said["int8"] == "8-bit weights and activations"
    assert said["int4"] == "4-bit weights in groups of 64"
    assert said["w4a8"] == "8-bit activations, 4-bit weights in groups of 64 in linear layers"
    assert said["hybrid"] == "convolutions in 8 bits, 8-bit weights in linear layers"
    encoders = in_words(recipes["int8-int4"].components["text_encoders"])
    assert encoders == "4-bit weights in groups of 128, 85% of them"


def test_in_a_browser(jobs: Jobs, browser: Browser) -> None:
    models = ["mini"]
    with gr.Blocks(analytics_enabled=False) as blocks:
        jobs_tab(jobs, lambda: list(models))
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False)
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    try:
        dialogs: list[str] = []

        def dismiss(dialog: Dialog) -> None:
            dialogs.append(dialog.message)
            dialog.dismiss()

        page.on("dialog", dismiss)
        page.goto(url)
        source, name = (page.locator(f"#{each}").locator("input, textarea") for each in NAMES)
        start = page.locator("#start-convert")

        source.fill(HOSTILE)
        name.fill("a b")
        start.click()
        expect(page.get_by_text("must be 1 to 64 letters")).to_be_visible()
        name.fill("a")
        start.click()
        expect(page.locator("#jobs .why")).to_contain_text(f"{HOSTILE}: no such file")
        assert page.title() == "Gradio" and page.locator("#jobs img").count() == 0

        models.append("made")
        source.fill("quick")
        start.click()
        expect(page.locator("#jobs .job.done")).to_be_visible()
        source.fill("slow")
        name.fill("b")
        start.click()
        expect(page.locator("#jobs .job").first).to_contain_text("running 25%")
        expect(page.locator("#job-log textarea")).to_have_value("converting unet (2/4)")
        page.locator("#job-stop").click()
        expect(page.locator("#jobs .job").first).to_contain_text("stopped")
        expect(page.locator("#job-stop")).to_be_disabled()

        page.locator("#optimize-model input").click()
        expect(page.get_by_role("option", name="made")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert dialogs == []
    finally:
        expect.set_options(timeout=5000)
        page.close()
        blocks.close(verbose=False)
