"""What people rely on when they work from pictures, on the model that ships."""

import numpy as np
import pytest
from PIL import Image

from sfumato import Pipeline

PROMPT = "noto red apple"


@pytest.fixture(scope="module")
def mini():
    return Pipeline.load("mini", memory="high")


@pytest.fixture(scope="module")
def apple(mini):
    return mini(PROMPT, seed=7).images[0]


def difference(one: Image.Image, other: Image.Image) -> float:
    """Root mean square of the pixels' differences, 0 to 255."""
    pixels = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    return float(np.sqrt((pixels**2).mean()))


def test_strength_decides_how_much_of_the_picture_stays(mini, apple):
    pictures = [
        mini("noto green apple", image=apple, strength=strength, seed=3).images[0]
        for strength in (0, 0.4, 0.8, 1)
    ]
    distances = [difference(apple, picture) for picture in pictures]
    assert distances == sorted(distances)
    assert distances[0] < 6  # only the autoencoder stands between them
    assert distances[-1] > 30


def test_strength_zero_asks_nobody(mini, apple):
    calls = []
    pictures = [
        mini(prompt, image=apple, strength=0, seed=3, on_step=calls.append).images[0]
        for prompt in (PROMPT, "noto green apple")
    ]
    assert not calls
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_strength_one_ignores_the_picture(mini, apple):
    alone = mini("noto green apple", seed=3).images[0]
    assert mini("noto green apple", image=apple, strength=1, seed=3).images[0].tobytes() == alone.tobytes()


@pytest.mark.parametrize("strength", [None, 0.7])
def test_inpainting_changes_what_is_white_and_nothing_else(strength, mini, apple):
    mask = Image.new("L", apple.size)
    mask.paste(255, (20, 30, 100, 90))
    painted = mini("noto green apple", image=apple, mask=mask, strength=strength, seed=3).images[0]
    before, after = np.asarray(apple), np.asarray(painted)
    white = np.asarray(mask) == 255
    np.testing.assert_array_equal(after[~white], before[~white])
    assert (after[white] != before[white]).mean() > 0.9
    redness = [int(pixels[60, 64, 0]) - int(pixels[60, 64, 1]) for pixels in (before, after)]
    assert redness[1] < redness[0] - 60, "the middle of the apple should have become greener"


def test_a_soft_mask_blends(mini, apple):
    mask = Image.new("L", apple.size, 255)
    mask.paste(0, (0, 0, 128, 64))
    mask.paste(128, (0, 56, 128, 72))
    painted = mini("noto green apple", image=apple, mask=mask, seed=3).images[0]
    np.testing.assert_array_equal(np.asarray(painted)[:56], np.asarray(apple)[:56])


def test_outpainting_keeps_the_picture_and_makes_it_larger(mini, apple):
    wider = mini(PROMPT, image=apple, outpaint=(0, 0, 32, 16), seed=3).images[0]
    assert wider.size == (160, 144)
    kept = np.s_[: 128 - 8, : 128 - 8]
    np.testing.assert_array_equal(np.asarray(wider)[kept], np.asarray(apple)[kept])


def test_pictures_of_a_batch_are_those_of_their_seeds(mini, apple):
    settings = {"image": apple, "strength": 0.6}
    both = mini("noto green apple", seed=3, count=2, **settings).images
    for seed, picture in zip((3, 4), both, strict=True):
        assert mini("noto green apple", seed=seed, **settings).images[0].tobytes() == picture.tobytes()


def test_a_picture_of_another_size_is_cropped_in_the_middle(mini, apple):
    wide = Image.new("RGB", (256, 128), "blue")
    wide.paste(apple, (64, 0))
    assert mini(PROMPT, image=wide, size=(128, 128), strength=0, seed=1).images[0].size == (128, 128)
    assert mini(PROMPT, image=wide, strength=0, seed=1).images[0].size == (256, 128)
    cropped = mini(PROMPT, image=wide, size=(128, 128), strength=0, seed=1).images[0]
    assert difference(cropped, apple) < 6


def test_the_second_picture_loads_nothing(mini, apple, monkeypatch):
    mini(PROMPT, image=apple, strength=0.5, steps=4)
    monkeypatch.setattr("sfumato.runtime.networks.Network._compiled", pytest.fail)
    mini(PROMPT, image=apple, strength=0.5, steps=4)


def test_guidance_in_an_interval_costs_half_outside_of_it(mini, monkeypatch):
    batches = []
    network = mini.denoiser
    monkeypatch.setattr(
        mini, "denoiser", _Counting(network, lambda inputs: batches.append(len(inputs["timestep"])))
    )
    mini(PROMPT, steps=10, guidance=4, seed=1)
    assert sum(batches) == 20
    batches.clear()
    mini(PROMPT, steps=10, guidance=4, seed=1, guidance_interval=(0.3, 0.8))
    assert 10 < sum(batches) < 20


class _Counting:
    """A network that tells of its calls."""

    def __init__(self, network, tell):
        self._network, self._tell = network, tell

    def __call__(self, inputs, outputs):
        self._tell(inputs)
        return self._network(inputs, outputs)

    def __getattr__(self, name):
        return getattr(self._network, name)
