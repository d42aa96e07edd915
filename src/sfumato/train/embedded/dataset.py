"""The training set of the embedded models: emoji art in five styles, with captions and fixed splits.

Skin-tone variants are left out; so are pictures without content. Pictures that look alike share the weight of
one, and none of them is held out while another is trained on. Some pictures come a second time, on a colour.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato.errors import InvalidRequest, MissingDependency, SfumatoError
from sfumato.files import atomic_file
from sfumato.train.embedded import balance
from sfumato.train.embedded.sources import ART_SETS, LABELS, fetch

SIDE = 128
PICTURES, RECORDS, CHECKSUM = "pictures.npy", "records.jsonl", "sha256.txt"
SPLITS = ("train", "pair", "concept")
SKIN_TONE = re.compile(r"-(?:(?:medium-)?(?:light|dark)|medium)(?:-skin-tone)?(?=-|$)|-tone\d")
AGAIN = "build the set again: sfumato train embedded data FOLDER"
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


# Colours that captions can name, none of them as deep as the art on them.
BACKGROUNDS = {
    "red": "#f4a3a0",
    "orange": "#ffc58a",
    "yellow": "#fff0a0",
    "green": "#a8dcae",
    "blue": "#a5cdf2",
    "purple": "#cdb4ea",
    "pink": "#fbc4dc",
    "gray": "#bdbdbd",
}
ON_COLOUR_GROUPS = ("faces", "nature", "food", "travel", "activity", "objects")
TURNABLE_GROUPS = ("faces", "nature", "food", "activity", "objects", "travel")
ONE_SIDED = re.compile(
    r"clock|thirty|left|right|arrow|hand|point|finger|thumb|sign|button|map|globe|abc|page|text|moon|medal"
    r"|zzz|sleep|taxi|police|ambulance|hotel|hospital|bank|note|news|calendar|keyboard|watch|music|joker"
    r"|mahjong|dice|die|book|chart|letter|number"
)


@dataclass(frozen=True)
class Record:
    """One picture: its style, what it shows, and the phrases that captions may use for that.

    background: what it lies on, white or a name in `BACKGROUNDS`. weight: 1 over the number of pictures that
    look like it. mirrors: captions stay true when it is mirrored.
    """

    style: str
    name: str
    concept: str
    phrases: tuple[str, ...]
    tags: tuple[str, ...]
    group: str
    split: str
    background: str = "white"
    weight: float = 1.0

    @property
    def mirrors(self) -> bool:
        return self.group in TURNABLE_GROUPS and ONE_SIDED.search(f"{self.concept} {self.name}") is None


def build(
    folder: Path, cache: Path, workers: int = 2, on_progress: Callable[[int, int], None] | None = None
) -> str:
    """Render every picture into `folder` and return the SHA-256 of the whole set.

    Writes `pictures.npy` (uint8, [pictures, 128, 128, 3]) and `records.jsonl`, in the order of style and
    name, those on a colour last: the same bytes on every run. Raises SfumatoError naming the icon that
    cannot be rendered.
    """
    items = list(_items(cache))
    items += _on_colours(items)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECKSUM).unlink(missing_ok=True)
    kept, drawn = [], []
    with ProcessPoolExecutor(workers) as pool:
        for index, pixels in enumerate(pool.map(_render, *zip(*items, strict=True), chunksize=32)):
            record = items[index][0]
            if _shows_something(pixels, record.background):
                kept.append(record)
                drawn.append(pixels)
            if on_progress:
                on_progress(index + 1, len(items))
    pictures = np.stack(drawn)
    records = balance.balance(kept, pictures)
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in records)
    digest = hashlib.sha256(pictures.tobytes() + lines.encode()).hexdigest()
    with atomic_file(folder / PICTURES) as partial, partial.open("wb") as file:
        np.save(file, pictures)
    (folder / RECORDS).write_text(lines)
    (folder / CHECKSUM).write_text(digest + "\n")
    return digest


def load(folder: Path) -> tuple[np.ndarray, list[Record]]:
    """Return the pictures (memory-mapped uint8 [n, 128, 128, 3]) and their records.

    Raises InvalidRequest for a folder that is unfinished or damaged, as far as shows without hashing it all.
    """
    if not (folder / CHECKSUM).is_file():
        raise InvalidRequest(
            f"{folder} holds no finished training set; build it: sfumato train embedded data {folder}"
        )
    try:
        if not re.fullmatch(r"[0-9a-f]{64}\n?", (folder / CHECKSUM).read_text()):
            raise ValueError(f"{CHECKSUM} holds no SHA-256")
        lines = (folder / RECORDS).read_text().splitlines()
        records = [_read_record(line, number) for number, line in enumerate(lines, start=1)]
        if not records:
            raise ValueError(f"{RECORDS} is empty")
        pictures = np.lib.format.open_memmap(folder / PICTURES, "r")
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{folder} is damaged ({error}); {AGAIN}") from error
    if pictures.shape != (len(records), SIDE, SIDE, 3) or pictures.dtype != np.uint8:
        raise InvalidRequest(
            f"{folder}: pictures are {pictures.dtype} {list(pictures.shape)}, but {len(records)} records "
            f"need uint8 {[len(records), SIDE, SIDE, 3]}; {AGAIN}"
        )
    return pictures, records


def _read_record(line: str, number: int) -> Record:
    try:
        row = json.loads(line)
        for name in ("phrases", "tags"):
            if not all(isinstance(text, str) for text in row[name]) or isinstance(row[name], str):
                raise ValueError(f"{name} is no list of texts")
        record = Record(**{**row, "phrases": tuple(row["phrases"]), "tags": tuple(row["tags"])})
        if not 0 < record.weight <= 1:
            raise ValueError(f"weight {record.weight} is not above 0 and at most 1")
    except KeyError as error:
        raise ValueError(f"line {number} of {RECORDS} has no {error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"line {number} of {RECORDS}: {error}") from error
    if not record.phrases or not all(phrase.strip() for phrase in record.phrases):
        raise ValueError(f"line {number} of {RECORDS}: {record.style} {record.name} has no caption")
    if record.split not in SPLITS or record.background not in ("white", *BACKGROUNDS):
        raise ValueError(
            f"line {number} of {RECORDS}: unknown split {record.split!r} or background {record.background!r}"
        )
    return record


def _items(cache: Path) -> Iterator[tuple[Record, str]]:
    labels = _labels(cache)
    squashed = {
        _squash(phrase): name for name, entry in labels.items() for phrase in (str(entry["label"]), name)
    }
    for art in sorted(ART_SETS, key=lambda art: art.style):
        icons = _read_json(fetch(art.package, cache) / "icons.json")
        width, height = icons.get("width", 16), icons.get("height", 16)
        for name in sorted(icons["icons"]):
            if SKIN_TONE.search(name) and SKIN_TONE.sub("", name) in icons["icons"]:
                continue
            icon = icons["icons"][name]
            size = (icon.get("width", width), icon.get("height", height))
            yield _record(art.style, name, labels, squashed), _svg(icon["body"], *size)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SfumatoError(
            f"{path}: cannot be read ({error}); remove the package's folder, and it is fetched again"
        ) from error


def _on_colours(items: list[tuple[Record, str]]) -> list[tuple[Record, str]]:
    """A second time, on a colour: an eighth of what is trained on, fixed by a hash."""
    colours = list(BACKGROUNDS)
    again = []
    for record, svg in items:
        bucket = _bucket(f"{record.style}/{record.name}/background")
        if record.split == "train" and record.group in ON_COLOUR_GROUPS and bucket < 1000 // len(colours):
            again.append((replace(record, background=colours[bucket % len(colours)]), svg))
    return again


def _shows_something(pixels: np.ndarray, background: str) -> bool:
    """False where nothing is drawn, or where the art leaves too little of its colour to be seen."""
    if background == "white":
        return bool((pixels < 250).any())
    colour = np.array([int(BACKGROUNDS[background][i : i + 2], 16) for i in (1, 3, 5)])
    same = (np.abs(pixels.astype(np.int16) - colour) <= 2).all(-1)
    return bool(same[[0, 0, -1, -1], [0, -1, 0, -1]].all()) and 0.15 < float(same.mean()) < 0.97


def _labels(cache: Path) -> dict[str, dict[str, object]]:
    """Emojibase's entry (label, tags, group) for every icon name that the packages tie to a code point."""
    entries = _read_json(fetch(LABELS, cache) / "en" / "data.json")
    by_code = {_code(entry["hexcode"]): entry for entry in entries}
    found: dict[str, dict[str, object]] = {}
    for art in ART_SETS:
        for code, name in _read_json(fetch(art.package, cache) / "chars.json").items():
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


def _render(record: Record, svg: str) -> np.ndarray:
    try:
        import resvg_py
    except ImportError as error:
        raise MissingDependency("rendering needs resvg-py: pip install 'sfumato[train]'") from error
    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg,
            width=SIDE,
            height=SIDE,
            background=BACKGROUNDS.get(record.background, "white"),
            skip_system_fonts=True,
        )
    except ValueError as error:
        raise SfumatoError(
            f"{record.style} {record.name}: cannot render this SVG ({error}): {svg[:120]}..."
        ) from error
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def indices(records: Iterable[Record], split: str) -> np.ndarray:
    """Positions (int64 [n]) of the records of a split."""
    return np.array([i for i, record in enumerate(records) if record.split == split], dtype=np.int64)
