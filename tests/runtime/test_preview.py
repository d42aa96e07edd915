"""Previews: a pixel for each latent, from the model folder's linear map, made when asked for."""

import numpy as np
import pytest
from pydantic import ValidationError

from sfumato.manifest import LatentSpace
from sfumato.runtime import progress
from sfumato.runtime.preview import preview

SWAPPED = [(0.0, 0.5, 0.0), (0.5, 0.0, 0.0), (0.5, 0.5, 0.25)]
"""Two channels in -1..1 as green and red, and a little blue."""


def space(preview: object = SWAPPED) -> LatentSpace:
    return LatentSpace(
        channels=2, factor=8, scale=1.0, size_multiple=8, default_size=(64, 64), preview=preview
    )


def latents() -> np.ndarray:
    zeros = np.zeros((1, 2, 3, 5), np.float32)
    zeros[0, :, 0, 0] = -1, 1
    return zeros


def test_a_pixel_for_each_latent():
    picture = preview(latents(), space())
    assert picture.mode == "RGB"
    assert picture.size == (5, 3)
    assert picture.getpixel((0, 0)) == (255, 0, 64)
    assert picture.getpixel((4, 2)) == (128, 128, 64)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e30, -1e30, np.inf, np.nan])
def test_any_latents_give_a_picture(value):
    assert preview(np.full((1, 2, 3, 5), value, np.float32), space()).size == (5, 3)


def test_none_without_a_map():
    assert preview(latents(), space(None)) is None


def test_a_step_shows_where_it_is_going(monkeypatch):
    made = []
    monkeypatch.setattr(progress, "preview", lambda *given: made.append(given) or preview(*given))
    steps = []
    after = progress.watch(0, 1, 1, np.array([999.0]), steps.append, None, space())
    after(0, np.full((1, 2, 3, 5), 7, np.float32), latents())
    assert made == []
    assert steps[0].preview().tobytes() == preview(latents(), space()).tobytes()
    assert len(made) == 1


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (SWAPPED[:2], "preview has 2 rows, not 3"),
        ([*SWAPPED[:2], (0.5, 0.5)], "Field required"),
        ([*SWAPPED[:2], (np.nan, 0.5, 0.5)], "finite"),
        ([*SWAPPED[:2], (1e9, 0.5, 0.5)], "less than or equal to 1000"),
    ],
)
def test_maps_that_no_model_has(rows, reason):
    with pytest.raises(ValidationError, match=reason):
        space(rows)
