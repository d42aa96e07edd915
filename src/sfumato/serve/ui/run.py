"""The server of the page: from its settings to a page that can be opened."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import compare_digest
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from ...artifact import models_folder
from ...errors import InvalidRequest, MissingDependency
from ...runtime.pictures import MAX_INPUT_PIXELS
from ..album import Album
from ..catalog import Catalog
from ..engine import Engine
from ..jobs import Jobs

FIRST_PORT, LAST_PORT = 7860, 7959
MOST_CALLS = 256
"""Most calls of the page that may wait in Gradio's own queue; each model has a line of its own as well."""
THREADS = 80
UPLOADS = "GRADIO_TEMP_DIR"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the page shows, and where.

    models: folders or names, the first one the default. port: None takes the first free one from FIRST_PORT
    on. output: where pictures stay; None keeps them until the server ends. at_once, waiting: see `Engine`.
    jobs: whether the page may convert and optimize. pipeline: options for `Pipeline.load`.
    """

    models: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int | None = None
    output: str | Path | None = None
    password: str | None = None
    at_once: int = 1
    waiting: int = 16
    jobs: bool = True
    pipeline: Mapping[str, Any] = field(default_factory=dict)


def run(settings: Settings, ready: Callable[[str], None]) -> None:
    """Show the page until the process is interrupted. ready: told its address.

    Raises ArtifactError or InvalidRequest for a model or an address that cannot be had, and
    MissingDependency without the `ui` extra.
    """
    with serving(settings) as (blocks, address):
        ready(address)
        blocks.block_thread()


@contextmanager
def serving(settings: Settings) -> Iterator[tuple[Any, str]]:
    """The page, shown as long as the block lasts, and its address. Raises as `run` does."""
    catalog = Catalog(settings.models)
    with ExitStack() as closing:
        closing.enter_context(_own_uploads())
        page, studio = _gradio()
        album = Album(settings.output)
        closing.callback(album.close)
        engine = Engine(at_once=settings.at_once, waiting=settings.waiting, options=settings.pipeline)
        closing.callback(engine.close)
        jobs = Jobs(models_folder()) if settings.jobs else None
        if jobs is not None:
            closing.callback(jobs.close)
        blocks = page(studio(engine, catalog, album), jobs)
        address = _launched(blocks, settings, album.folder)
        closing.callback(blocks.close, verbose=False)
        first = next(iter(catalog.models().values()), None)
        if first is not None:
            engine.warm(str(first.path))
        yield blocks, address


def _gradio() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What needs Gradio: the page, and what its tabs share."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    try:
        from .app import page
        from .studio import Studio
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"the page needs the package {error.name!r}; install it with `pip install 'sfumato[ui]'`"
        ) from error
    return page, Studio


@contextmanager
def _own_uploads() -> Iterator[None]:
    """A folder that ends with the block for what is uploaded, unless GRADIO_TEMP_DIR names one."""
    if UPLOADS in os.environ:
        yield
        return
    with TemporaryDirectory(prefix="sfumato-uploads-", ignore_cleanup_errors=True) as folder:
        os.environ[UPLOADS] = folder
        try:
            yield
        finally:
            del os.environ[UPLOADS]


def _launched(blocks: Any, settings: Settings, pictures: Path) -> str:
    from .theme import CSS, theme
    from .uploads import MOST_BYTES, refuse_addresses

    refuse_addresses()
    Image.MAX_IMAGE_PIXELS = MAX_INPUT_PIXELS // 2  # Pillow refuses twice as many, whoever opens them
    blocks.queue(max_size=MOST_CALLS, default_concurrency_limit=8)
    try:
        _, address, _ = blocks.launch(
            server_name=settings.host,
            server_port=settings.port,
            auth=None if settings.password is None else _gate(settings.password),
            auth_message="Any name, and the password that the server was started with.",
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            footer_links=[],
            run_history=False,
            max_file_size=MOST_BYTES,
            max_threads=THREADS,
            allowed_paths=[str(pictures)],
            theme=theme(),
            css=CSS,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
        )
    except OSError as error:
        place = f"{settings.host}:{settings.port or f'{FIRST_PORT} to {LAST_PORT}'}"
        raise InvalidRequest(
            f"{place}: cannot be listened on ({error.strerror or 'the port is in use'}); "
            "choose another --port or --host"
        ) from error
    return str(address)


def _gate(password: str) -> Callable[[str, str], bool]:
    return lambda _, given: compare_digest(given.encode(), password.encode())
