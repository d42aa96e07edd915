"""TOML files in and TOML text out: the part of the format that recipes need."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest

MAX_BYTES = 1_000_000


def read_toml(path: Path) -> dict[str, Any]:
    """The document in a file.

    Raises InvalidRequest, which leaves it to the caller to name the file: it cannot be read, is too big, no
    UTF-8 or no TOML, with the line.
    """
    try:
        if path.is_dir():
            raise InvalidRequest("is a folder; give a .toml file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"cannot be read ({error.strerror})") from error
    if len(data) > MAX_BYTES:
        raise InvalidRequest(f"more than {MAX_BYTES} bytes; a recipe is a small TOML file")
    try:
        # The end of the line is there so that an error in the last one has a number too.
        return tomllib.loads(data.decode("utf-8-sig") + "\n")
    except UnicodeDecodeError as error:
        # Without the mark that `utf-8-sig` drops, positions would be those of the file; lines are the same.
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InvalidRequest(f"line {line} is no UTF-8 text; save the file as UTF-8") from error
    except RecursionError as error:
        raise InvalidRequest("nested too deeply; a recipe has tables of plain values") from error
    except ValueError as error:
        raise InvalidRequest(f"is no TOML ({error})") from error


def to_toml(document: Mapping[str, Any]) -> str:
    """TOML text of plain values followed by tables of plain values, in the order given.

    Values: str, bool, int, finite float, and lists of these. Keys must be bare ones.
    """
    plain = {key: value for key, value in document.items() if not isinstance(value, Mapping)}
    parts = [_lines(plain)]
    parts += [f"[{key}]\n{_lines(value)}" for key, value in document.items() if isinstance(value, Mapping)]
    return "\n".join(part for part in parts if part)


def _lines(table: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {_value(value)}\n" for key, value in table.items())


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():  # JSON's escapes are TOML's, but that JSON leaves DEL as it is
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case _:
            return f"[{', '.join(_value(item) for item in value)}]"
