"""What all tabs of the page share: models, pictures, and what runs for whom."""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr

from ...artifact import Artifact
from ...files import human_bytes
from ...units import duration
from ..album import Album
from ..catalog import Catalog, label
from ..engine import Engine, Event, Started, Stepped, Task, Waiting, Work
from .errors import in_words

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Options of an event: the page shows progress itself, and is no API for others."""

Models = Mapping[str, Artifact]
"""Models by name, as the catalog lists them."""


@dataclass
class Studio:
    """The rooms behind the page."""

    engine: Engine
    catalog: Catalog
    album: Album
    _running: dict[str, set[Task]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, request: gr.Request, work: Work) -> Iterator[Event]:
        """Make pictures for a browser's tab. Raises what `Task.events` raises."""
        session = session_of(request)
        task = self.engine.start(work)
        with self._lock:
            self._running.setdefault(session, set()).add(task)
        try:
            yield from task.events()
        finally:
            task.cancel()
            with self._lock:
                tasks = self._running.get(session, set())
                tasks.discard(task)
                if not tasks:
                    self._running.pop(session, None)

    def stop(self, request: gr.Request) -> None:
        """Cancel what runs for a browser's tab."""
        with self._lock:
            tasks = list(self._running.get(session_of(request), ()))
        for task in tasks:
            task.cancel()

    def choices(self, models: Models) -> list[tuple[str, str]]:
        """What a list of models shows, and the models' names."""
        return [
            (label(name, artifact, self.engine.step_seconds(artifact.path)), name)
            for name, artifact in models.items()
        ]


def progress_of(event: Event) -> tuple[str, float | None] | None:
    """What to say of an event, and the share that is done; None where there is nothing to say."""
    match event:
        case Waiting(ahead=1):
            return "waiting: one picture goes first", None
        case Waiting():
            return f"waiting: {event.ahead} go first", None
        case Started():
            return "loading the model", 0.0
        case Stepped():
            left = "" if event.left is None else f", {duration(event.left)} left"
            return f"step {event.done} of {event.total}{left}", event.done / event.total
    return None


def status(text: str, share: float | None = None, wrong: bool = False) -> str:
    """One line, with a bar below it where there is a share."""
    bar = "" if share is None else f'<div class="bar"><span style="width:{share:.1%}"></span></div>'
    role = "alert" if wrong else "status"
    return f'<div class="status{" wrong" if wrong else ""}" role="{role}">{escape(text)}{bar}</div>'


def what_went_wrong(error: Exception) -> str:
    """An error as a status line."""
    return status(in_words(error), wrong=True)


def pace(step_seconds: float) -> str:
    """Of a step: `0.123 s`, or nothing where it was not measured."""
    return "" if math.isnan(step_seconds) else f"{step_seconds:.3g} s"


def facts(artifact: Artifact, step_seconds: float | None) -> str:
    """What a model is and takes, as a table."""
    manifest = artifact.manifest
    width, height = manifest.latents.default_size
    recipe = manifest.recipe.name if manifest.recipe else manifest.precision
    rows = [
        ("family", manifest.family),
        ("recipe", recipe),
        ("on disk", human_bytes(manifest.bytes)),
        (
            "made for",
            f"{width}x{height}, {manifest.sampling.steps} steps, guidance {manifest.sampling.guidance:g}",
        ),
        ("a step here", "not measured yet" if step_seconds is None else pace(step_seconds)),
    ]
    for name in manifest.components:
        size = manifest.files[f"{name}/openvino_model.bin"].bytes
        rows.append((name, human_bytes(size)))
    return f'<div class="facts">{table(rows)}</div>'


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Rows of texts in HTML."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{top}</tr>' if top else ''}{body}</table>"


def buttons(go: gr.Button, stop: gr.Button, *, running: bool) -> dict[Any, Any]:
    """What becomes of the buttons that begin and stop."""
    return {go: gr.update(interactive=not running), stop: gr.update(interactive=running)}


def session_of(request: gr.Request) -> str:
    """The browser's tab that asks."""
    return str(request.session_hash)
