"""Tiny checkpoints and their artifacts, made once a session and on demand."""

import gc
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compiled networks of tests stay out of the user's cache, and the user's models out of the tests."""
    os.environ["SFUMATO_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["SFUMATO_MODELS"] = str(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`checkpoints(name)`: the folder of a tiny random checkpoint, one of `tiny.NAMES`; not to be changed."""
    import tiny

    gc.freeze()  # what the libraries hold is not looked through again at every conversion
    root = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda name: tiny.make(name, root / name))


@pytest.fixture(scope="session")
def artifacts(
    tmp_path_factory: pytest.TempPathFactory, checkpoints: Callable[[str], Path]
) -> Callable[[str], Path]:
    """`artifacts(name)`: a tiny checkpoint converted with fp32 weights; not to be changed."""
    from sfumato import convert

    root = tmp_path_factory.mktemp("artifacts")

    @cache
    def make(name: str) -> Path:
        convert(checkpoints(name), root / name, precision="fp32")
        return root / name

    return make
