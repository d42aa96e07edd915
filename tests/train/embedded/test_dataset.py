"""The training set: rebuilt bit for bit, balanced, split without leaks, and refused where it is damaged."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from sfumato.errors import InvalidRequest, SfumatoError
from sfumato.train import examples
from sfumato.train.embedded import balance, dataset
from sfumato.train.embedded.sources import ART_SETS


def test_dataset_is_the_same_on_every_build(packages):
    first = dataset.build(packages / "a", packages / "cache", workers=1)
    second = dataset.build(packages / "b", packages / "cache", workers=2)
    assert first == second
    assert (packages / "a/pictures.npy").read_bytes() == (packages / "b/pictures.npy").read_bytes()


def test_pictures_and_captions_belong_together(data):
    pictures, records = dataset.load(data)
    assert pictures.shape == (3 * len(ART_SETS), 128, 128, 3)
    apple = next(i for i, r in enumerate(records) if r.style == "noto" and r.concept == "red apple")
    assert tuple(pictures[apple, 64, 64]) == (238, 0, 0)
    assert tuple(pictures[apple, 2, 2]) == (255, 255, 255)
    assert records[apple].tags == ("fruit",) and records[apple].group == "food"


def test_names_without_dashes_find_their_concept(data):
    _, records = dataset.load(data)
    assert [r.concept for r in records if r.name == "redapple"] == ["red apple"]


def test_skin_tones_are_left_out(data):
    _, records = dataset.load(data)
    assert "hand-medium-dark" not in {r.name for r in records}


def test_broken_svg_is_named():
    with pytest.raises(SfumatoError, match="noto apple: cannot render this SVG"):
        dataset._render(record("apple"), "<svg><unclosed>")


def test_unfinished_dataset_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="sfumato train embedded data"):
        dataset.load(tmp_path)


def record(name, style="noto", **changes):
    fields = {"phrases": (name,), "tags": (), "group": "food", "split": "train"} | changes
    return dataset.Record(style, name, name, **fields)


def pictures_of(*shades):
    """Flat pictures, one for each shade of grey."""
    return np.stack([np.full((128, 128, 3), shade, np.uint8) for shade in shades])


def test_pictures_that_look_alike_share_one_weight():
    records = [record("guard"), record("man-guard"), record("apple"), record("guard", style="flat")]
    balanced = balance.balance(records, pictures_of(100, 100, 160, 100))
    assert [r.weight for r in balanced] == [0.5, 0.5, 1, 1]


def test_nothing_held_out_looks_like_what_is_trained_on():
    records = [record("guard", split="pair"), record("man-guard"), record("apple", split="concept")]
    balanced = balance.balance(records, pictures_of(100, 100, 160))
    assert [r.split for r in balanced] == ["train", "train", "concept"]


def test_a_concept_that_comes_into_training_is_no_longer_held_out():
    records = [
        record("bowing", split="concept"),
        record("man-bowing"),
        record("bowing", style="flat", split="concept"),
    ]
    balanced = balance.balance(records, pictures_of(100, 100, 160))
    assert [r.split for r in balanced] == ["train", "train", "pair"]


def test_some_pictures_come_again_on_a_colour(data, monkeypatch):
    """All that may, here: the colour reaches the corners, the caption's record names it."""
    monkeypatch.setattr(dataset, "_bucket", lambda text: 0)
    item = (record("popcorn"), dataset._svg('<circle cx="16" cy="16" r="8"/>', 32, 32))
    flag = (record("flag", group="flags"), item[1])
    held = (record("plum", split="pair"), item[1])
    (again,) = dataset._on_colours([item, flag, held])
    assert again[0].background == "red" and again[0].name == "popcorn"
    pixels = dataset._render(*again)
    assert tuple(pixels[0, 0]) == (0xF4, 0xA3, 0xA0) and tuple(pixels[64, 64]) == (0, 0, 0)
    assert dataset._shows_something(pixels, "red")


@pytest.mark.parametrize("background", ["white", "red"])
def test_empty_or_hidden_pictures_are_left_out(background):
    colour = {"white": (255, 255, 255), "red": (0xF4, 0xA3, 0xA0)}[background]
    empty = np.broadcast_to(np.array(colour, np.uint8), (128, 128, 3))
    assert not dataset._shows_something(empty, background)


def test_mirroring_keeps_what_has_sides():
    assert record("cat", group="nature").mirrors
    assert not record("left-arrow", group="symbols").mirrors
    assert not record("one-oclock-clock", group="objects").mirrors
    assert not record("flag", group="flags").mirrors


def damage(folder, target, change):
    shutil.copytree(folder, target)
    change(target)
    return target


def drop_line(folder):
    path = folder / "records.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def change_record(**changes):
    def change(folder):
        path = folder / "records.jsonl"
        first, *rest = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps(json.loads(first) | changes), *rest]))

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "records.jsonl").write_text("{"), "damaged"),
        (lambda folder: (folder / "records.jsonl").unlink(), "records.jsonl"),
        (lambda folder: (folder / "records.jsonl").write_text(""), "is empty"),
        (lambda folder: (folder / "pictures.npy").write_bytes(b"no array"), "damaged"),
        (lambda folder: np.save(folder / "pictures.npy", np.zeros((3, 8, 8, 3))), "float64"),
        (drop_line, "records need"),
        (change_record(phrases=[]), "has no caption"),
        (change_record(phrases=[""]), "has no caption"),
        (change_record(phrases=[" "]), "has no caption"),
        (change_record(phrases="apple"), "line 1 of records.jsonl: phrases"),
        (change_record(surprise=1), "surprise"),
        (change_record(weight=0), "weight 0"),
        (change_record(split="tset"), "'tset'"),
        (
            lambda folder: (folder / "records.jsonl").write_text('{"style": "noto"}'),
            "line 1 .* has no 'phrases'",
        ),
        (lambda folder: (folder / "sha256.txt").write_text("junk"), "no SHA-256"),
        (lambda folder: os.truncate(folder / "pictures.npy", 0), "damaged"),
        (lambda folder: os.truncate(folder / "pictures.npy", 5000), "damaged"),
        (lambda folder: (folder / "pictures.npy").write_bytes(b"PK\x03\x04"), "damaged"),
    ],
)
def test_damaged_sets_are_refused(data, tmp_path, change, reason):
    folder = damage(data, tmp_path / "damaged", change)
    with pytest.raises(InvalidRequest, match=reason) as caught:
        dataset.load(folder)
    assert "sfumato train embedded data" in str(caught.value)


def test_a_damaged_package_is_named(packages, monkeypatch):
    fetch = dataset.fetch

    def fetch_damaged(package, cache):
        folder = fetch(package, cache)
        (folder / "icons.json").write_text('{"icons": {"red')
        return folder

    monkeypatch.setattr(dataset, "fetch", fetch_damaged)
    with pytest.raises(SfumatoError, match=r"icons\.json: cannot be read.*fetched again"):
        dataset.build(packages / "data", packages / "cache", workers=1)


@pytest.mark.parametrize(
    ("side", "told"), [(512, ["pictures of 128x128 for a model of 512x512"]), (128, []), (None, [])]
)
def test_a_model_of_another_size_is_told(side, told, data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        examples, "cached_latents", lambda vae, pictures, rows, out: torch.zeros(len(rows), 4)
    )
    examples.open_examples(data, None, tmp_path / "out", side=side)
    lines = [record.getMessage() for record in caplog.records if record.name == examples.__name__]
    assert len(lines) == len(told) and all(words in line for words, line in zip(told, lines, strict=True))
