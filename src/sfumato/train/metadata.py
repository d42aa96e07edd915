"""Captions of a picture folder, laid out as the `datasets` library's imagefolder is.

https://huggingface.co/docs/datasets/image_dataset#imagefolder
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sfumato.errors import InvalidRequest
from sfumato.strict_json import parse_json

JSON_LINES, TABLE = "metadata.jsonl", "metadata.csv"
NAME = "file_name"
CAPTIONS = ("text", "caption", "prompt")
EXAMPLE = '{"file_name": "0001.png", "text": "a red apple on a table"}'


@dataclass(frozen=True)
class Captioned:
    """A picture's file and the captions it has: one, or several to draw from; any may be empty."""

    path: Path
    captions: tuple[str, ...]


def find_metadata(data: Path) -> Path | None:
    """The file with the captions, in the folder or in its `train` split; None where there is none.

    Raises InvalidRequest where there are two.
    """
    for folder in (data, data / "train"):
        found = [folder / name for name in (JSON_LINES, TABLE) if (folder / name).is_file()]
        if len(found) > 1:
            raise InvalidRequest(f"{folder}: has {JSON_LINES} and {TABLE}; keep the one that counts")
        if found:
            return found[0]
    return None


def read_metadata(path: Path) -> list[Captioned]:
    """Every picture with its captions, in the order of the file; lines on the same picture are put together.

    Raises InvalidRequest naming the line that has no file name or caption, or whose file name leaves the
    folder.
    """
    captions: dict[Path, list[str]] = {}
    try:
        for number, row in _table(path) if path.name == TABLE else _json_lines(path):
            try:
                captions.setdefault(path.parent / _file(row), []).extend(_captions(row))
            except ValueError as error:
                raise InvalidRequest(f"{path}, line {number}: {error}; a line is {EXAMPLE}") from error
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path}: is no UTF-8 text ({error.reason}); save it as UTF-8") from error
    if not captions:
        raise InvalidRequest(f"{path}: is empty; a line for each picture is {EXAMPLE}")
    if not any(text for texts in captions.values() for text in texts):
        raise InvalidRequest(f"{path}: every caption is empty; a line is {EXAMPLE}")
    return [Captioned(file, tuple(texts)) for file, texts in captions.items()]


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(
                    f"{path}, line {number}: is no JSON ({error}); a line is {EXAMPLE}"
                ) from error
            if not isinstance(row, dict):
                raise InvalidRequest(f"{path}, line {number}: is no JSON object; a line is {EXAMPLE}")
            yield number, row


def _table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row:  # what a comma cut off
                    raise InvalidRequest(
                        f"{path}, line {reader.line_num}: has more fields than the first line; put captions "
                        "with commas in double quotes"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise InvalidRequest(f"{path}, line {reader.line_num}: is no CSV ({error})") from error


def _file(row: dict[str, Any]) -> str:
    name = row.get(NAME)
    if not isinstance(name, str) or not name:
        raise ValueError(f"has no {NAME!r}")
    file = PurePosixPath(name)
    if file.is_absolute() or ".." in file.parts or "\0" in name:
        raise ValueError(f"{NAME} {name!r} leaves the folder; give it from the folder of this file on")
    return name


def _captions(row: dict[str, Any]) -> list[str]:
    given = next((row[name] for name in CAPTIONS if row.get(name) is not None), None)
    wanted = given if isinstance(given, list) else [given]
    texts = [text.strip() for text in wanted if isinstance(text, str)]
    if not texts or len(texts) < len(wanted):
        names = ", ".join(repr(name) for name in CAPTIONS)
        raise ValueError(f"has no caption: one of {names} must be a text, or a list of texts")
    return texts
