"""JSON of which every reader makes the same document."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The document. Raises ValueError for no JSON or a key given twice, RecursionError for deep nesting."""
    return json.loads(text, object_pairs_hook=_without_repetition)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"key {key!r} is given twice")
        document[key] = value
    return document
