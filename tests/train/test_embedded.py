"""Training the embedded models: data rebuilt bit for bit, runs that resume, checkpoints that survive."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from sfumato.cli import main
from sfumato.errors import InvalidRequest, SfumatoError
from sfumato.train.embedded import autoencoder, captions, dataset, diffusion, models, state, tokenizers
from sfumato.train.embedded.group_norm import use_channels_last
from sfumato.train.embedded.sources import ART_SETS, LABELS

RED = '<path fill="#e00" d="M4 4h24v24H4z"/>'
GREEN = '<circle fill="#0a0" cx="16" cy="16" r="12"/>'


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """The packages' layout in small, in place of the downloaded ones."""

    def fetch(package, cache):
        folder = tmp_path / "packages" / package.name.replace("/", "-")
        if package == LABELS:
            (folder / "en").mkdir(parents=True, exist_ok=True)
            entry = {"hexcode": "1F34E", "label": "red apple", "tags": ["fruit"], "group": 4}
            (folder / "en" / "data.json").write_text(json.dumps([entry]))
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        name = "redapple" if "fxemoji" in package.name else "red-apple"
        icons = {n: {"body": GREEN} for n in ("popcorn", "hand", "hand-medium-dark")} | {name: {"body": RED}}
        (folder / "icons.json").write_text(json.dumps({"icons": icons, "width": 32, "height": 32}))
        chars = {} if "fxemoji" in package.name else {"1f34e": name}
        (folder / "chars.json").write_text(json.dumps(chars))
        return folder

    monkeypatch.setattr(dataset, "fetch", fetch)
    return tmp_path


@pytest.fixture
def data(packages):
    dataset.build(packages / "data", packages / "cache", workers=1)
    return packages / "data"


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
    with pytest.raises(SfumatoError, match="cannot render this SVG"):
        dataset._render("<svg><unclosed>")


def test_unfinished_dataset_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="sfumato train embedded data"):
        dataset.load(tmp_path)


def test_captions_name_style_or_concept():
    record = dataset.Record("noto", "red-apple", "red apple", ("red apple",), (), "food", "train")
    texts = {captions.caption(record, np.random.default_rng(i)) for i in range(50)}
    assert "noto red apple" in texts
    assert all("red apple" in text for text in texts)


def test_common_concepts_get_their_share():
    common = [dataset.Record(s, "cat", "cat", ("cat",), (), "nature", "train") for s in "abcd"]
    rare = [dataset.Record("a", f"x{i}", f"x{i}", (f"x{i}",), (), "objects", "train") for i in range(20)]
    weights = captions.weights(common + rare, 0.75)
    assert weights.sum() == pytest.approx(1)
    assert weights[:4].sum() == pytest.approx(0.75)


def test_words_are_taught_as_often_as_each_other():
    cats = [dataset.Record("a", f"cat-{i}", f"cat {i}", ("cat",), (), "nature", "train") for i in range(3)]
    rest = [dataset.Record("a", n, n, (n,), (), "nature", "train") for n in ("dog", "caterpillar")]
    weights = captions.word_weights(cats + rest, ("cat", "dog"))
    assert weights.tolist() == pytest.approx([1 / 6] * 3 + [1 / 2, 0])
    with pytest.raises(InvalidRequest, match="'zebra'"):
        captions.word_weights(cats, ("zebra",))
