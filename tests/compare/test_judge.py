"""What is judged, what is not, and the notes that say why."""

import numpy as np
import pytest
from PIL import Image
from reports import picture

from sfumato.compare import Evaluator
from sfumato.compare.fidelity import frechet_distance, psnr, ssim
from sfumato.compare.judge import FRECHET_PICTURES, judge, reads

ICONS = ("noto red apple", "fluent smiling cat", "flat blue car")


@pytest.fixture(scope="module")
def evaluator():
    return Evaluator()


@pytest.fixture
def pictures(tmp_path):
    """`pictures(count, name=noise, ...)`: so many pictures of each name, equal but for their noise."""

    def make(count, **noises):
        files = {}
        for name, noise in noises.items():
            files[name] = [tmp_path / f"{name}-{i}.png" for i in range(count)]
            for i, file in enumerate(files[name]):
                picture(file, i, noise)
        return files

    return make


def array(file):
    return np.asarray(Image.open(file))


def test_means_and_the_worst(pictures, evaluator):
    files = pictures(3, base=0, near=2)
    picture(files["near"][1], 1, 20)
    found = judge(files, ICONS, "base", ["near"], evaluator=evaluator).fidelity["near"]
    pairs = [(array(a), array(b)) for a, b in zip(files["near"], files["base"], strict=True)]
    assert found.psnr == pytest.approx(np.mean([psnr(*pair) for pair in pairs]))
    assert found.psnr_worst == pytest.approx(psnr(*pairs[1]))
    assert found.ssim == pytest.approx(np.mean([ssim(*pair) for pair in pairs]))
    assert found.ssim_worst == pytest.approx(ssim(*pairs[1]))
    assert found.distance == pytest.approx(
        np.mean(evaluator.distance([a for a, _ in pairs], [b for _, b in pairs])), rel=1e-5
    )


def test_equal_pictures_do_not_count_in_decibels(pictures, evaluator):
    files = pictures(3, base=0, near=0)
    picture(files["near"][2], 2, 5)
    found = judge(files, ICONS, "base", ["near"], evaluator=evaluator).fidelity["near"]
    assert found.psnr == found.psnr_worst == psnr(array(files["near"][2]), array(files["base"][2]))


def test_only_what_can_be_held_against_the_reference_is(pictures, evaluator):
    found = judge(pictures(3, base=0, near=1, far=9), ICONS, "base", ["near"], evaluator=evaluator)
    assert set(found.fidelity) == {"near"}
    assert set(found.recall) == {"base", "near", "far"}


def test_frechet_distance_needs_many(pictures, evaluator):
    few = judge(pictures(3, base=0, near=9), ICONS, "base", ["near"], evaluator=evaluator)
    assert few.fidelity["near"].frechet is None
    assert any("Frechet" in note and str(FRECHET_PICTURES) in note for note in few.notes)
    files = pictures(FRECHET_PICTURES, base=0, near=9)
    prompts = [f"noto thing {i}" for i in range(FRECHET_PICTURES)]
    many = judge(files, prompts, "base", ["near"], evaluator=evaluator)
    features = [evaluator.read([Image.open(file) for file in files[name]]).features for name in files]
    assert many.fidelity["near"].frechet == pytest.approx(frechet_distance(*features), rel=1e-3)
    assert not any("Frechet" in note for note in many.notes)


@pytest.mark.parametrize(
    ("prompts", "known"),
    [
        (["noto red apple", "Fluent cat"], True),
        (["noto red apple", "a photo of a cat"], False),
        (["a noto apple"], False),
        (["notorious apple"], False),
    ],
)
def test_it_reads_prompts_that_begin_with_a_style(evaluator, prompts, known):
    assert reads(evaluator, prompts) is known


def test_other_prompts_have_no_recall(pictures, evaluator):
    found = judge(
        pictures(2, base=0, near=1), ["noto cat", "a harbour"], "base", ["near"], evaluator=evaluator
    )
    assert found.recall == {}
    assert any("knows icons only" in note for note in found.notes)


def test_one_prompt_has_no_rival(pictures, evaluator):
    found = judge(pictures(2, base=0, near=1), ["noto cat"] * 2, "base", ["near"], evaluator=evaluator)
    assert found.recall == {}
    assert any("one prompt" in note for note in found.notes)


def test_recall_sees_what_was_drawn(tmp_path, evaluator):
    from PIL import ImageDraw

    prompts = ["flat red circle", "flat blue circle", "flat green circle"]
    right = [tmp_path / f"right-{i}.png" for i in range(3)]
    for file, colour in zip(right, ((221, 46, 68), (30, 110, 220), (80, 170, 60)), strict=True):
        image = Image.new("RGB", (128, 128), "white")
        ImageDraw.Draw(image).ellipse((10, 10, 118, 118), fill=colour)
        image.save(file)
    files = {"right": right, "wrong": [right[1], right[2], right[0]]}
    found = judge(files, prompts, "right", ["wrong"], evaluator=evaluator).recall
    assert found["right"].r1 == 1
    assert found["wrong"].r1 == 0
    assert found["wrong"].r5 == 1
