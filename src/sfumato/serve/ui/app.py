"""The page as a whole."""

from typing import Any

import gradio as gr

from ..jobs import Jobs
from .create import create_tab
from .gallery import gallery_tab
from .jobs import jobs_tab
from .studio import Studio
from .theme import TOGGLE
from .versus import versus_tab


def page(studio: Studio, jobs: Jobs | None) -> gr.Blocks:
    """All tabs. jobs: None leaves the tab out that converts and optimizes."""
    with gr.Blocks(title="Sfumato", analytics_enabled=False, fill_width=False) as blocks:
        owner = gr.BrowserState("", storage_key="sfumato-owner", secret="sfumato")
        chosen = gr.State()
        with gr.Row(elem_id="title"):
            gr.HTML("<h1>Sfumato</h1><p>pictures from words, on this machine</p>", padding=False)
            appearance = gr.Button("light / dark", size="sm", elem_id="appearance")
        with gr.Tabs() as tabs:
            with gr.Tab("Create", id="create"):
                create = create_tab(studio, owner, chosen)
            with gr.Tab("A/B", id="versus"):
                versus = versus_tab(studio)
            with gr.Tab("Gallery", id="gallery") as gallery:
                shown = gallery_tab(studio, owner, create, versus, tabs)
            if jobs is not None:
                with gr.Tab("Convert & optimize", id="jobs"):
                    jobs_tab(
                        jobs,
                        lambda: [(name, str(each.path)) for name, each in studio.catalog.models().items()],
                    )
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        appearance.click(None, js=TOGGLE, **quiet)
        lists = [create.model, create.refiner, *(side.model for side in versus.sides)]

        def refreshed(model: Any, refiner: Any, first: Any, second: Any) -> dict[Any, Any]:
            return create.refreshed(model, refiner) | versus.refreshed(first, second)

        blocks.load(studio.album.owner, owner, owner, **quiet)
        blocks.load(refreshed, lists, lists, **quiet)
        tabs.select(refreshed, lists, lists, **quiet)
        gallery.select(
            lambda name: [str(path) for path in studio.album.pictures(name)], owner, shown, **quiet
        )
        blocks.unload(studio.stop)
    return blocks
