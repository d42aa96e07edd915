"""The training set of the embedded models: emoji art in five styles, with captions and fixed splits."""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.errors import InvalidRequest, MissingDependency, SfumatoError
from sfumato.files import atomic_file
from sfumato.train.embedded.sources import ART_SETS, LABELS, fetch

SIDE = 128
PICTURES, RECORDS, CHECKSUM = "pictures.npy", "records.jsonl", "sha256.txt"
SKIN_TONE = re.compile(r"-(?:(?:medium-)?(?:light|dark)|medium)(?:-skin-tone)?(?=-|$)|-tone\d")
GROUPS = (
    "faces",
    "people",
    "component",
    "nature",
    "food",
    "travel",
    "activity",
    "objects",
    "symbols",
    "flags",
)


@dataclass(frozen=True)
class Record:
    """One picture: its style, what it shows, and the phrases that captions may use for that."""

    style: str
    name: str
    concept: str
    phrases: tuple[str, ...]
    tags: tuple[str, ...]
    group: str
    split: str


def build(
    folder: Path, cache: Path, workers: int = 2, on_progress: Callable[[int, int], None] | None = None
) -> str:
    """Render every picture into `folder` and return the SHA-256 of the whole set.

    Writes `pictures.npy` (uint8, [pictures, 128, 128, 3], on white) and `records.jsonl`, in the order of
    style and name, the same bytes on every run. Raises SfumatoError for an SVG that cannot be rendered.
    """
    items = list(_items(cache))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECKSUM).unlink(missing_ok=True)
    lines = "".join(json.dumps(asdict(record)) + "\n" for record, _ in items)
    with atomic_file(folder / PICTURES) as partial:
        shape = (len(items), SIDE, SIDE, 3)
        pictures = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        with ProcessPoolExecutor(workers) as pool:
            for index, pixels in enumerate(pool.map(_render, [svg for _, svg in items], chunksize=32)):
                pictures[index] = pixels
                if on_progress:
                    on_progress(index + 1, len(items))
        pictures.flush()
        digest = hashlib.sha256(pictures.tobytes() + lines.encode()).hexdigest()
    (folder / RECORDS).write_text(lines)
    (folder / CHECKSUM).write_text(digest + "\n")
    return digest


def load(folder: Path) -> tuple[np.ndarray, list[Record]]:
    """Return the pictures (memory-mapped uint8 [n, 128, 128, 3]) and their records."""
    if not (folder / CHECKSUM).is_file():
        raise InvalidRequest(
            f"{folder} holds no finished training set; build it: sfumato train embedded data {folder}"
        )
    rows = [json.loads(line) for line in (folder / RECORDS).read_text().splitlines()]
    records = [
        Record(**{**row, "phrases": tuple(row["phrases"]), "tags": tuple(row["tags"])}) for row in rows
    ]
    pictures = np.load(folder / PICTURES, mmap_mode="r")
    if len(pictures) != len(records):
        raise InvalidRequest(
            f"{folder}: {len(pictures)} pictures but {len(records)} records; build the set again"
        )
    return pictures, records


def _items(cache: Path) -> Iterator[tuple[Record, str]]:
    labels = _labels(cache)
    squashed = {
        _squash(phrase): name for name, entry in labels.items() for phrase in (str(entry["label"]), name)
    }
    for art in sorted(ART_SETS, key=lambda art: art.style):
        folder = fetch(art.package, cache)
        icons = json.loads((folder / "icons.json").read_text())
        width, height = icons.get("width", 16), icons.get("height", 16)
        for name in sorted(icons["icons"]):
            if SKIN_TONE.search(name) and SKIN_TONE.sub("", name) in icons["icons"]:
                continue
            icon = icons["icons"][name]
            size = (icon.get("width", width), icon.get("height", height))
            yield _record(art.style, name, labels, squashed), _svg(icon["body"], *size)


def _labels(cache: Path) -> dict[str, dict[str, object]]:
    """Emojibase's entry (label, tags, group) for every icon name that the packages tie to a code point."""
    entries = json.loads((fetch(LABELS, cache) / "en" / "data.json").read_text())
    by_code = {_code(entry["hexcode"]): entry for entry in entries}
    found: dict[str, dict[str, object]] = {}
    for art in ART_SETS:
        for code, name in json.loads((fetch(art.package, cache) / "chars.json").read_text()).items():
            if _code(code) in by_code:
                found.setdefault(name, by_code[_code(code)])
    return found


def _record(style: str, name: str, labels: dict[str, dict[str, object]], squashed: dict[str, str]) -> Record:
    known = labels.get(name) or labels.get(squashed.get(_squash(name), ""))
    words = name.replace("-", " ")
    if known is None:
        return Record(style, name, words, (words,), (), "other", _split(style, words))
    label = str(known["label"]).lower().replace("’", "'")
    phrases = tuple(dict.fromkeys([label, words] if " " in words or " " not in label else [label]))
    group = GROUPS[int(str(known["group"]))] if "group" in known else "other"
    tags = tuple(str(tag) for tag in known.get("tags", []))  # type: ignore[attr-defined]
    return Record(style, name, label, phrases, tags, group, _split(style, label))


def _split(style: str, concept: str) -> str:
    """Held-out concepts (2 percent) and held-out style-concept pairs (3 percent), fixed by a hash."""
    if _bucket(concept) < 20:
        return "concept"
    return "pair" if _bucket(f"{style}/{concept}") < 30 else "train"


def _bucket(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 1000


def _code(hexcode: str) -> str:
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def _squash(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _svg(body: str, width: int, height: int) -> str:
    side = max(width, height)
    box = f"{(width - side) / 2:g} {(height - side) / 2:g} {side} {side}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{box}">{body}</svg>'


def _render(svg: str) -> np.ndarray:
    try:
        import resvg_py
    except ImportError as error:
        raise MissingDependency("rendering needs resvg-py: pip install 'sfumato[train]'") from error
    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=SIDE, height=SIDE, background="white", skip_system_fonts=True
        )
    except ValueError as error:
        raise SfumatoError(f"cannot render this SVG: {error}: {svg[:120]}...") from error
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def indices(records: Iterable[Record], split: str) -> np.ndarray:
    """Positions (int64 [n]) of the records of a split."""
    return np.array([i for i, record in enumerate(records) if record.split == split], dtype=np.int64)
