"""Batch files: lines read when they are due, bad ones named, and no picture made twice."""

import io
import itertools
import json
import os
import threading
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from sfumato.artifact import embedded_models, load_artifact
from sfumato.errors import InvalidRequest, SfumatoError
from sfumato.runtime.batch import (
    MAX_LINE,
    BadLine,
    Batch,
    Line,
    WriteFailed,
    count_lines,
    open_lines,
    read_lines,
)
from sfumato.runtime.parameters import Models, described
from sfumato.runtime.png import read_parameters


def read(*lines: object, folder: Path = Path()) -> list[Line | BadLine]:
    text = b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines)
    return list(read_lines(io.BufferedReader(io.BytesIO(text)), folder))


def test_a_line_is_a_request():
    first, second = read(
        {"prompt": "a", "steps": 3, "name": "cat.png"}, b"", {"prompt": "b", "size": "64x32"}
    )
    assert (first.number, first.prompt, first.name) == (1, "a", "cat")
    assert first.given["steps"] == 3
    assert (second.number, second.given["size"], second.name) == (3, (64, 32), None)


def test_spelling_is_no_matter():
    (one,) = read(b'{"prompt": "a", "steps": 3, "seed": 1}')
    (other,) = read(b'\xef\xbb\xbf {"seed":1,"steps":3,\t"prompt":"a"}\r\n')
    assert one == other


def test_seeds_belong_to_the_lines():
    first, second, third = read({"prompt": "a"}, {"prompt": "a"}, {"prompt": "a", "seed": 5})
    assert first.given["seed"] == read({"prompt": "a"})[0].given["seed"]
    assert len({first.given["seed"], second.given["seed"], third.given["seed"], 5}) == 3
    assert 0 <= first.given["seed"] < 2**32


def test_pictures_are_beside_the_file(tmp_path):
    folder, elsewhere = tmp_path / "e", tmp_path / "d.png"
    (folder / "b").mkdir(parents=True)
    for path in (folder / "b" / "c.png", elsewhere, folder / "f"):
        path.touch()
    (line,) = read(
        {"prompt": "a", "image": "b/c.png", "mask": str(elsewhere), "mask_image": "f"}, folder=folder
    )
    assert (line.given["image"], line.given["mask"]) == (folder / "b" / "c.png", elsewhere)
    assert line.given["mask_image"] == folder / "f"


@pytest.mark.parametrize("name", ["absent.png", "~no-such-user/x.png", "folder", "pipe", "x" * 300, "\ud800"])
@pytest.mark.parametrize("key", ["image", "mask", "mask_image"])
def test_a_line_without_its_picture_is_bad(tmp_path, key, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    bad, good = read({"prompt": "a", key: name}, {"prompt": "b"}, folder=tmp_path)
    assert isinstance(bad, BadLine)
    assert bad.reason.startswith(f"{key} '{tmp_path}/")
    bad.reason.encode()
    assert good.prompt == "b"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"red apple", "is no JSON .*write an object such as"),
        (b'{"prompt": "a"', "is no JSON"),
        (b'{"prompt": "a", "prompt": "b"}', "twice"),
        (b'"red apple"', "no JSON object"),
        (b"[" * 200_000, "is no JSON"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "is no JSON"),
        (b'{"prompt": "\xff"}', "is no JSON"),
        (b"{}", 'no "prompt"'),
        (b'{"prompt": null}', 'no "prompt"'),
        (b'{"prompt": "a", "image": 3}', "image 3: must be the name of a file"),
        (b'{"prompt": "a", "size": "big"}', "size 'big'"),
        (b'{"prompt": "a", "name": "../a"}', "must be a plain file name"),
        (b'{"prompt": "a", "name": ".a"}', "must be a plain file name"),
        (b'{"prompt": "a", "name": ""}', "must be a plain file name"),
        (b'{"prompt": "a", "name": "a\\nb"}', "must be a plain file name"),
        (b'{"prompt": "a", "name": "\\ud800"}', "must be a plain file name"),
        (b'{"prompt": "a", "name": 7}', "must be a plain file name"),
        (json.dumps({"prompt": "a", "name": "ä" * 51}).encode(), "at most 100 bytes"),
        (json.dumps({"prompt": "a" * MAX_LINE}).encode(), "longer than 1048576 bytes"),
    ],
)
def test_bad_lines_are_named_and_passed_over(line, says):
    import re

    good, bad, last = read({"prompt": "a"}, line, {"prompt": "b"})
    assert isinstance(bad, BadLine)
    assert bad.number == 2
    assert re.search(says, bad.reason), bad.reason
    assert (good.number, last.number, last.prompt) == (1, 3, "b")


class Endless(io.RawIOBase):
    """A file of so many lines that are made when they are read."""

    def __init__(self, lines: int) -> None:
        self.left, self.given = lines, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        line = b'{"prompt": "noto red apple"}\n'
        count = min(self.left, len(buffer) // len(line))
        buffer[: count * len(line)] = line * count
        self.left, self.given = self.left - count, self.given + count
        return count * len(line)


def test_a_million_lines_are_neither_read_ahead_nor_kept():
    source = Endless(1_000_000)
    lines = read_lines(io.BufferedReader(source), Path())
    assert [line.number for line in itertools.islice(lines, 3)] == [1, 2, 3]
    assert source.given < 1000
    tracemalloc.start()
    try:
        assert sum(1 for _ in itertools.islice(lines, 20_000)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_pipe_is_read_as_it_is_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    asked = threading.Event()

    def write() -> None:
        with (tmp_path / "pipe").open("w") as file:
            print('{"prompt": "a"}', file=file, flush=True)
            assert asked.wait(30), "the first line must arrive before the second is written"
            print('{"prompt": "b"}', file=file)

    writer = threading.Thread(target=write)
    writer.start()
    assert count_lines(tmp_path / "pipe") is None
    with open_lines(tmp_path / "pipe") as file:
        prompts = []
        for line in read_lines(file, tmp_path):
            prompts.append(line.prompt)
            asked.set()
    writer.join()
    assert prompts == ["a", "b"]


def test_lines_are_counted(tmp_path):
    for text, count in (("", 0), ("a", 1), ("a\n", 1), ("a\n\nb", 3), ("a\n" * 1_000_000, 1_000_000)):
        (tmp_path / "a").write_text(text)
        assert count_lines(tmp_path / "a") == count


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    for path in (tmp_path / "a.png", tmp_path / "absent", tmp_path):
        with pytest.raises(InvalidRequest, match=str(path)):
            open_lines(path)


@dataclass
class FakePipeline:
    """Paints the seed, and remembers it."""

    model: str = "mini"
    steps: int = 20
    stop_after: int = 1000
    merging: None = None
    seeds: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        manifest = load_artifact(embedded_models()["mini"]).manifest
        sampling = manifest.sampling.model_copy(update={"steps": self.steps})
        manifest = manifest.model_copy(update={"name": self.model, "sampling": sampling})
        self.artifact = SimpleNamespace(manifest=manifest)

    def generate(self, request, on_step, on_image):
        for index, seed in enumerate(request.seeds):
            if len(self.seeds) == self.stop_after:
                raise KeyboardInterrupt
            self.seeds.append(seed)
            text = described(request, index, Models(self.model))
            on_image(index, Image.new("RGB", request.size, (seed % 256, 0, 0)), text)


@pytest.fixture
def make(tmp_path):
    """Make lines with a fake pipeline; returns how many pictures each took."""

    def make(*lines: dict, pipeline: FakePipeline | None = None, saved: list | None = None) -> list[int]:
        batch = Batch(pipeline or FakePipeline(), tmp_path, lambda prompt: prompt)
        keep = saved.append if saved is not None else lambda path: None
        return [batch.make(line, lambda step: None, keep) for line in read(*lines)]

    return make


def test_pictures_have_names_and_parameters(make, tmp_path):
    saved: list[Path] = []
    assert make({"prompt": "a", "seed": 7, "count": 2}, {"prompt": "b", "name": "cat"}, saved=saved) == [2, 1]
    assert [path.name[:9] for path in saved[:2]] == ["000001-a-"] * 2
    assert [path.name[-6:] for path in saved[:2]] == ["-1.png", "-2.png"]
    assert saved[2] == tmp_path / "cat.png"
    assert [read_parameters(path).settings["Seed"] for path in saved[:2]] == ["7", "8"]
    assert sorted(tmp_path.iterdir()) == sorted(saved)


def test_nothing_is_made_twice(make, tmp_path):
    lines = [{"prompt": "a"}, {"prompt": "b", "count": 3, "name": "b"}]
    assert make(*lines) == [1, 3]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert make(*lines) == [0, 0]
    assert make(*lines, {"prompt": "c"}) == [0, 0, 1]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_line_goes_on_at_its_first_missing_picture(make, tmp_path):
    line = {"prompt": "a", "seed": 10, "count": 5}
    with pytest.raises(KeyboardInterrupt):
        make(line, pipeline=FakePipeline(stop_after=2))
    rest = FakePipeline()
    assert make(line, pipeline=rest) == [3]
    assert rest.seeds == [12, 13, 14]
    colours = [Image.open(path).getpixel((0, 0))[0] for path in sorted(tmp_path.iterdir())]
    assert colours == [10, 11, 12, 13, 14]


def test_another_model_or_request_makes_another_picture(make, tmp_path):
    make({"prompt": "a", "steps": 2})
    assert make({"prompt": "a", "steps": 3}) == [1]
    assert make({"prompt": "a", "steps": 2}, pipeline=FakePipeline("other")) == [1]
    assert make({"prompt": "a", "steps": 2}, pipeline=FakePipeline(steps=30)) == [1]
    assert len(list(tmp_path.iterdir())) == 4


def test_an_edited_picture_makes_another_one(make, tmp_path):
    pictures = tmp_path.parent / f"{tmp_path.name}-in"
    pictures.mkdir()
    for name in ("image", "mask"):
        Image.new("RGB", (64, 64), (255, 255, 255)).save(pictures / f"{name}.png")
    line = {"prompt": "a", "seed": 1}
    line |= {name: str(pictures / f"{name}.png") for name in ("image", "mask")}
    assert make(line) == [1]
    for count, name in enumerate(("image", "mask"), start=2):
        path = pictures / f"{name}.png"
        os.utime(path)
        assert make(line) == [0]
        Image.new("RGB", (64, 64), (200, 200, 200)).save(path)
        assert make(line) == [1]
        assert len(list(tmp_path.iterdir())) == count


def test_a_name_is_never_taken_from_another_picture(make, tmp_path):
    make({"prompt": "a", "name": "cat"})
    before = (tmp_path / "cat.png").read_bytes()
    with pytest.raises(InvalidRequest, match=r"cat.png: exists already, and is of another request"):
        make({"prompt": "b", "name": "cat"})
    (tmp_path / "dog.png").write_text("mine")
    with pytest.raises(InvalidRequest, match=r"dog.png"):
        make({"prompt": "b", "name": "dog"})
    assert ((tmp_path / "cat.png").read_bytes(), (tmp_path / "dog.png").read_text()) == (before, "mine")


def test_wrong_values_are_of_one_line(make):
    for wrong in (
        {"steps": 0},
        {"stepz": 3},
        {"size": [63, 64]},
        {"seed": -1},
        {"prompt": 7},
        {"guidance": "x"},
    ):
        with pytest.raises(InvalidRequest) as caught:
            make({"prompt": "a"} | wrong)
        assert not isinstance(caught.value, WriteFailed)


def test_diffusers_names(make, tmp_path):
    make({"prompt": "a", "num_inference_steps": 3, "width": 64, "height": 32, "guidance_scale": 2})
    (path,) = tmp_path.iterdir()
    found = read_parameters(path).settings
    assert (found["Steps"], found["Size"], found["CFG scale"]) == ("3", "64x32", "2")


def test_leftovers_of_killed_runs_go(make, tmp_path):
    old, new, mine = (tmp_path / name for name in (".1.png.partial-old", ".1.png.partial-new", ".mine"))
    for path in (old, new, mine):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    os.utime(mine, (0, 0))
    make({"prompt": "a"})
    assert (old.exists(), new.exists(), mine.exists()) == (False, True, True)


def test_what_cannot_be_written_ends_it(make, monkeypatch):
    def full(*_):
        raise SfumatoError("no space left")

    monkeypatch.setattr("sfumato.runtime.batch.save_png", full)
    with pytest.raises(WriteFailed, match="no space left"):
        make({"prompt": "a"})
