"""The page as a whole."""

from typing import Any

import gradio as gr

from ..jobs import Jobs
from .create import create_tab
from .gallery import gallery_tab
from .jobs import jobs_tab
from .studio import QUIET, Studio
from .theme import TOGGLE
from .versus import versus_tab

COPIES = (600, 24 * 3600)
"""Seconds between looks for old uploads and copies of pictures, and from which age they are removed."""


def page(studio: Studio, jobs: Jobs | None) -> gr.Blocks:
    """All tabs. jobs: None leaves the tab out that converts and optimizes."""
    options: dict[str, Any] = {"analytics_enabled": False, "fill_width": False, "delete_cache": COPIES}
    with gr.Blocks(title="Sfumato", **options) as blocks:
        owner = gr.BrowserState("", storage_key="sfumato-owner", secret="sfumato")
        with gr.Row(elem_id="title"):
            gr.HTML("<h1>Sfumato</h1><p>pictures from words, on this machine</p>", padding=False)
            appearance = gr.Button("light / dark", size="sm", elem_id="appearance")
        with gr.Tabs() as tabs:
            with gr.Tab("Create", id="create"):
                create = create_tab(studio, owner)
            with gr.Tab("A/B", id="versus"):
                versus = versus_tab(studio)
            with gr.Tab("Gallery", id="gallery") as gallery:
                gallery_tab(studio, owner, create, versus, tabs, gallery)
            if jobs is not None:
                with gr.Tab("Convert & optimize", id="jobs"):
                    jobs_tab(
                        jobs,
                        lambda: [(name, str(each.path)) for name, each in studio.catalog.models().items()],
                    )
        appearance.click(None, js=TOGGLE, **QUIET)
        lists = [create.model, create.refiner, *(side.model for side in versus.sides)]
        outputs = [*lists, *create.of_model(), *versus.of_model()]

        def refreshed(model: Any, refiner: Any, first: Any, second: Any) -> dict[Any, Any]:
            models = studio.catalog.models()
            return create.refreshed(models, model, refiner) | versus.refreshed(models, first, second)

        blocks.load(studio.album.owner, owner, owner, **QUIET)
        blocks.load(refreshed, lists, outputs, **QUIET)
        tabs.select(refreshed, lists, outputs, **QUIET)
        blocks.unload(studio.stop)
    return blocks
