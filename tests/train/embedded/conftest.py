"""A training set in small: two icons in every style, rendered as the real ones are."""

import json

import pytest
import torch

from sfumato.train.embedded import autoencoder, dataset
from sfumato.train.embedded.sources import LABELS
from sfumato.train.loop import Plan

RED = '<path fill="#e00" d="M4 4h24v24H4z"/>'
GREEN = '<circle fill="#0a0" cx="16" cy="16" r="12"/>'
BLUE = '<circle fill="#00c" cx="16" cy="16" r="6"/>'


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
        bodies = {"popcorn": GREEN, "hand": BLUE, "hand-medium-dark": BLUE, name: RED}
        icons = {n: {"body": body} for n, body in bodies.items()}
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


@pytest.fixture
def vae(data, tmp_path):
    torch.set_num_threads(1)
    autoencoder.train(
        data, tmp_path / "vae", Plan(steps=2, batch=2, rate=1e-3), autoencoder.Stage(), say=lambda _: None
    )
    return tmp_path / "vae" / "vae"
