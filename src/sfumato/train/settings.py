"""The settings that a run goes on with when it is resumed."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sfumato.errors import InvalidRequest
from sfumato.files import atomic_file
from sfumato.train.loop import Plan

SETTINGS = "settings.json"
CHANGEABLE = ("steps", "rate", "rates", "clip", "save_every", "sample_every", "log_every", "stop_at")
"""What of a plan a resumed run may have another value of."""
MOST_SHOWN = 60


def lasting(plan: Plan) -> dict[str, Any]:
    """What of a plan a resumed run cannot change."""
    return {name: value for name, value in asdict(plan).items() if name not in CHANGEABLE}


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write what a run was begun with; raises InvalidRequest where it was begun with something else."""
    file = folder / SETTINGS
    given = json.loads(json.dumps(settings))
    if not file.exists():
        with atomic_file(file) as partial_file:
            partial_file.write_text(json.dumps(given, indent=2) + "\n")
        return
    try:
        kept = dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"{file}: damaged ({error}); remove {folder} to begin anew") from error
    for name in sorted(given.keys() | kept.keys()):
        if kept.get(name) != given.get(name):
            values = [_shown(each.get(name)) for each in (kept, given)]
            raise InvalidRequest(
                f"{folder} was begun with {name} {values[0]}, now it is {values[1]}; give the same again, or "
                "remove the folder to begin anew"
            )


def _shown(value: Any) -> str:
    """A setting in a message; of a recipe, its first lines."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
