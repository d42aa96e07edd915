"""Training the evaluator: what is drawn is true, rivals are fair, and the export reads what was trained."""

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.compare import Evaluator
from sfumato.errors import ArtifactError, InvalidRequest
from sfumato.train.embedded import evaluator
from sfumato.train.embedded.augmentation import augment, move, quantize, soften
from sfumato.train.embedded.dataset import Record
from sfumato.train.embedded.latents import to_tensor
from sfumato.train.loop import Plan, run

STYLES = ("flat", "noto")
COLOURS = {"red apple": (220, 30, 30), "green leaf": (40, 160, 60), "blue sea": (30, 60, 200)}


@pytest.fixture(scope="module")
def records():
    def record(style, concept):
        known = {"style": style, "name": concept, "concept": concept, "phrases": (concept,), "tags": ()}
        return Record(**known, group="food", split="train")

    return [record(style, concept) for style in STYLES for concept in COLOURS]


@pytest.fixture(scope="module")
def pictures():
    """A square in style `flat`, two bars in style `noto`, in the thing's colour."""
    shown = np.full((6, 128, 128, 3), 255, np.uint8)
    for index, colour in enumerate([*COLOURS.values()] * 2):
        if index < 3:
            shown[index, 32:96, 32:96] = colour
        else:
            shown[index, 20:50, 16:112] = shown[index, 80:110, 16:112] = colour
    return shown


@pytest.fixture(scope="module")
def trained(pictures, records, tmp_path_factory):
    torch.manual_seed(0)
    task = evaluator.EvaluatorTask(pictures, records, evaluator.make_tokenizer(records, 600))
    out = tmp_path_factory.mktemp("evaluator")
    run(task, Plan(steps=40, batch=6, rate=2e-2, ema_decay=0.5), out, say=lambda text: None)
    evaluator.export(task, out / "evaluator")
    return task, out / "evaluator"


def test_what_is_trained_is_what_the_runtime_computes(trained, pictures):
    task, folder = trained
    texts = ["noto red apple", "flat blue sea and a caption that is cut because it is much longer than most"]
    with torch.no_grad():
        embedding, features, style, *layers = task.image(to_tensor(pictures))
        words = task.text(*evaluator.tokenize(task.tokenizer, texts))
    shipped = Evaluator(folder)
    assert shipped.styles == STYLES
    seen = shipped.read(pictures)
    for ours, theirs in ((seen.embedding, embedding), (seen.features, features), (seen.style, style)):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=0.02 * float(theirs.abs().max()))
    np.testing.assert_allclose(shipped.embed(texts), words.numpy(), atol=0.01)
    units = [layer / layer.square().sum(1, keepdim=True).sqrt() for layer in layers]
    wanted = sum((unit[0] - unit[1]).square().sum(0).mean() for unit in units)
    assert shipped.distance(pictures[:1], pictures[1:2])[0] == pytest.approx(float(wanted), rel=0.02)


def test_a_finished_run_can_be_given_again(pictures, records, tmp_path, monkeypatch):
    """With more steps, or as a part of a longer script that is begun again."""
    monkeypatch.setattr(evaluator.dataset, "load", lambda _: (pictures, records))
    for steps in (1, 1, 2):
        evaluator.train(tmp_path, tmp_path / "out", Plan(steps=steps, batch=6, rate=1e-3), lambda _: None)
        assert Evaluator(tmp_path / "out/evaluator").styles == STYLES


def test_a_few_steps_teach_style(trained, pictures):
    """The rest needs real training; see the model's own tests."""
    _, folder = trained
    seen = Evaluator(folder).read([Image.fromarray(p) for p in pictures])
    assert (seen.style.argmax(1) == [0, 0, 0, 1, 1, 1]).mean() >= 0.8


def test_distance_is_zero_for_the_same_and_grows_with_damage(trained, pictures):
    shipped = Evaluator(trained[1])
    noise = np.random.default_rng(0).integers(0, 120, pictures[:1].shape)
    little, much = (np.clip(pictures[:1] - noise * share, 0, 255).astype(np.uint8) for share in (0.1, 1))
    assert shipped.distance(pictures[:1], pictures[:1])[0] == pytest.approx(0, abs=1e-9)
    assert 0 < shipped.distance(pictures[:1], little)[0] < shipped.distance(pictures[:1], much)[0]


def test_bad_input_is_named(trained, pictures, tmp_path):
    shipped = Evaluator(trained[1])
    with pytest.raises(InvalidRequest, match="no pictures"):
        shipped.read(pictures[:0])
    with pytest.raises(InvalidRequest, match="1 and 2 pictures"):
        shipped.distance(pictures[:1], pictures[:2])
    seen = shipped.read(pictures)
    with pytest.raises(InvalidRequest, match="6 pictures, 1 captions, 1 styles"):
        shipped.score(seen, ["noto red apple"], ["noto"], seen)
    with pytest.raises(InvalidRequest, match="'oil': the evaluator knows flat, noto"):
        shipped.score(seen, ["oil red apple"] * 6, ["oil"] * 6, seen)
    with pytest.raises(ArtifactError, match="cannot be read"):
        Evaluator(tmp_path / "nowhere")
    for path in trained[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "text.bin").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"text\.bin: damaged"):
        Evaluator(tmp_path)


def test_batches_depend_on_the_generators_alone(trained):
    task, _ = trained
    first, again = (
        task.draw(4, np.random.default_rng(3), torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape == (4, 3, 128, 128) and first[0].abs().max() <= 1


def test_captions_that_are_true_of_another_picture_are_no_counterexamples():
    named = torch.tensor([True, False, True, True])
    concept, style = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 0])
    assert evaluator.also_true(named, concept, style).tolist() == [
        [False, True, False, False],  # caption 1 names no style
        [False, False, False, False],  # caption 0 names another style
        [False, False, False, True],
        [False, False, True, False],
    ]


def test_augmented_pictures_stay_recognizable(pictures):
    x = to_tensor(pictures)
    y = augment(x, torch.zeros(6, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert y.shape == x.shape and y.dtype == torch.float32 and y.abs().max() <= 1
    centre = (y[:3, :, 56:72, 56:72].mean((2, 3)) + 1) / 2 * 255
    assert (centre.argmax(1) == torch.tensor([0, 1, 2])).all()


def test_only_what_may_be_mirrored_is(pictures):
    x = to_tensor(pictures)
    x[:, :, :, 64:] = -1
    mirror = torch.tensor([True, True, True, False, False, False])
    sides = []
    for seed in range(8):
        y = move(x, mirror, torch.Generator().manual_seed(seed))
        sides.append(y[..., :40].mean((1, 2, 3)) < y[..., 88:].mean((1, 2, 3)))
    turned = torch.stack(sides)
    assert turned[:, :3].any() and not turned[:, :3].all()
    assert not turned[:, 3:].any()


def test_degrading_is_mild_and_real(pictures):
    x = to_tensor(pictures)
    assert torch.allclose(quantize(x, 1e-4), x, atol=1e-3)
    for worse in (quantize(x, 0.2), soften(x, 0.3)):
        assert 1e-5 < (worse - x).square().mean() < 0.05
