"""Prompts for calibration and comparisons: captions that ship, and files of one caption a line."""

import codecs
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from ..errors import InvalidRequest
from ..runtime import values

SHIPPED = ("general", "icons")
MAX_CHARACTERS = 2_000
MAX_LINES = 100_000
_MAX_BYTES = 4 * MAX_CHARACTERS + 2  # UTF-8 takes four bytes for a character at most


def load_prompts(path: Path) -> list[str]:
    """The captions of a UTF-8 file, one a line; blank lines and those that begin with # are skipped.

    Raises InvalidRequest naming the file and the line: no UTF-8 text, more than 2,000 characters in a line,
    more than 100,000 lines, no caption at all, a file that cannot be read.
    """
    prompts = []
    try:
        with path.open("rb") as file:
            for number in range(1, MAX_LINES + 2):
                line = file.readline(_MAX_BYTES + 1)
                if not line:
                    break
                if number > MAX_LINES:
                    raise InvalidRequest(f"{path}: more than {MAX_LINES} lines; give fewer prompts")
                caption = _caption(line, f"{path}: line {number}", first=number == 1)
                if caption and not caption.startswith("#"):
                    prompts.append(caption)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"prompts {str(path)!r}: cannot be read ({reason})") from error
    if not prompts:
        raise InvalidRequest(f"{path}: has no prompts; write one a line")
    return prompts


def shipped(name: str) -> list[str]:
    """300 captions that ship: "general", or "icons" in the words of the embedded models."""
    if name not in SHIPPED:
        hint = values.did_you_mean(name, SHIPPED)
        raise InvalidRequest(f"captions {name!r}: {hint}There is {', '.join(SHIPPED)}")
    return load_prompts(_folder() / f"{name}.txt")


def negatives() -> list[str]:
    """Negative prompts that suit any picture."""
    return load_prompts(_folder() / "negative.txt")


def pick(prompts: Sequence[str], count: int) -> list[str]:
    """`count` prompts spread evenly over a list; all of them in turn where there are fewer."""
    if not prompts:
        raise InvalidRequest("no prompts to pick from; give one or more")
    if count > len(prompts):
        return [prompts[i % len(prompts)] for i in range(count)]
    return [prompts[i * len(prompts) // count] for i in range(count)]


def _caption(line: bytes, where: str, first: bool) -> str:
    if first:
        line = line.removeprefix(codecs.BOM_UTF8)
    try:
        text = line.decode().strip() if len(line) <= _MAX_BYTES else "." * (MAX_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} is 0x{line[error.start]:02x}"
        raise InvalidRequest(f"{where} is no UTF-8 text ({byte}); save the file as UTF-8") from error
    if "\0" in text:
        raise InvalidRequest(f"{where} is no text (it has a NUL); give a text file with one prompt a line")
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequest(f"{where} is longer than {MAX_CHARACTERS} characters; write one prompt a line")
    return text


def _folder() -> Path:
    return Path(str(files("sfumato"))) / "optimize" / "captions"
