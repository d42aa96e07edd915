"""Errors as the page shows them: one line each, and the traceback of an unexpected one in the log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import gradio as gr

from ...errors import SfumatoError

_log = logging.getLogger(__name__)


def in_words(error: Exception) -> str:
    """An error's one line; one that is not for people also goes to the log."""
    if isinstance(error, SfumatoError):
        return str(error)
    _log.error("unexpected %s", type(error).__name__, exc_info=error)
    return f"unexpected {type(error).__name__}: {error}"


def toast(text: str) -> gr.Error:
    """To raise: shows a text in a corner of the page for a while."""
    return gr.Error(escape(text), print_exception=False)


@contextmanager
def toasts() -> Iterator[None]:
    """Show what goes wrong in the block as a toast."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise toast(in_words(error)) from error
