"""Picture folders as training data: what is read, what the model is shown, and what is refused."""

import json
import os

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from sfumato.errors import InvalidRequest
from sfumato.train import pictures
from sfumato.train.examples import open_examples

SIDE = 16


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 8],
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIDE,
        scaling_factor=0.5,
        shift_factor=0.25,
    ).requires_grad_(False)


@pytest.fixture
def folder(tmp_path):
    """`folder(lines)`: a picture for each line of metadata, halves of two colours; returns the folder."""

    def make(lines, metadata="metadata.jsonl"):
        data = tmp_path / "data"
        data.mkdir()
        rng = np.random.default_rng(0)
        for line in lines:
            name = str(line.get("file_name", "")) if isinstance(line, dict) else ""
            if name.endswith(".png") and ".." not in name and not name.startswith("/"):
                (data / name).parent.mkdir(parents=True, exist_ok=True)
                paint(data / name, *rng.integers(0, 256, (2, 3)))
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (data / metadata).write_text(text + "\n")
        return data

    return make


def paint(path, left=(250, 10, 10), right=(10, 10, 250), size=(40, 20)):
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2], pixels[:, size[0] // 2 :] = left, right
    Image.fromarray(pixels).save(path)


def line(number, text=None):
    return {"file_name": f"{number}.png", "text": f"picture {number}" if text is None else text}


def open_folder(data, vae, out, **options):
    return open_examples(data, vae, out, say=options.pop("say", lambda _: None), **options)


def test_draws_are_a_function_of_the_generator(folder, vae, tmp_path):
    examples = open_folder(folder([line(i) for i in range(5)]), vae, tmp_path / "out")
    first, second, other = (examples.draw(6, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], second[0]) and first[1] == second[1]
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (6, 4, SIDE // 2, SIDE // 2) and first[0].dtype == torch.float32
    assert set(first[1]) <= {f"picture {i}" for i in range(5)}


@pytest.mark.parametrize("mirror", [True, False])
def test_latents_are_samples_of_the_scaled_posterior_of_both_versions(mirror, folder, vae, tmp_path):
    data = folder([line(0)])
    paint(data / "0.png", size=(3 * SIDE, SIDE))
    examples = open_folder(data, vae, tmp_path / "out", mirror=mirror)
    middle = Image.open(data / "0.png").crop((SIDE, 0, 2 * SIDE, SIDE))
    x = torch.from_numpy(np.asarray(middle).transpose(2, 0, 1)[None] / 127.5 - 1).float()
    drawn = examples.draw(4000, np.random.default_rng(0))[0]
    versions = [vae.encode(each).latent_dist for each in ((x, x.flip(3)) if mirror else (x,))]
    means = [(each.mean[0] - 0.25) * 0.5 for each in versions]
    distances = torch.stack([(drawn - mean).flatten(1).norm(dim=1) for mean in means])
    nearest = distances.argmin(0)
    assert set(nearest.tolist()) == set(range(len(means)))
    for version, (mean, posterior) in enumerate(zip(means, versions, strict=True)):
        near = drawn[nearest == version]
        torch.testing.assert_close(near.mean(0), mean, atol=0.06, rtol=0.05)
        torch.testing.assert_close(near.std(0), posterior.std[0] * 0.5, atol=0.05, rtol=0.1)


def test_the_second_run_encodes_nothing_and_sees_the_same(folder, vae, tmp_path, monkeypatch):
    data = folder([line(i) for i in range(3)])
    first = open_folder(data, vae, tmp_path / "out").draw(4, np.random.default_rng(0))
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "_encode_all", None)
        second = open_folder(data, vae, tmp_path / "out").draw(4, np.random.default_rng(0))
    assert torch.equal(first[0], second[0]) and first[1] == second[1]
    paint(data / "0.png", (1, 2, 3))
    open_folder(data, vae, tmp_path / "out")
    open_folder(data, vae, tmp_path / "out", side=2 * SIDE)
    assert len(list((tmp_path / "out").glob("latents-*"))) == 3


def test_a_cut_off_cache_is_named(folder, vae, tmp_path):
    data = folder([line(0)])
    open_folder(data, vae, tmp_path / "out")
    (cache,) = (tmp_path / "out").glob("latents-*/moments.f16")
    cache.write_bytes(cache.read_bytes()[:10])
    with pytest.raises(InvalidRequest, match=r"is damaged .*; remove it"):
        open_folder(data, vae, tmp_path / "out")


def test_an_interrupted_encoding_leaves_no_cache(folder, vae, tmp_path, monkeypatch):
    def full_disk(file, moments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures, "_append", full_disk)
    with pytest.raises(Exception, match="no space left"):
        open_folder(folder([line(0)]), vae, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["text", "caption", "prompt"])
def test_captions_by_any_of_their_usual_names(name, folder, vae, tmp_path):
    examples = open_folder(folder([{"file_name": "a.png", name: " red, blue "}]), vae, tmp_path / "out")
    assert examples.draw(1, np.random.default_rng(0))[1] == ["red, blue"]


def test_several_captions_of_a_picture_are_drawn_from(folder, vae, tmp_path):
    lines = [line(0, "one"), line(0, "two"), line(1, ["three", "four"])]
    examples = open_folder(folder(lines), vae, tmp_path / "out")
    assert len(examples.captions) == 2
    assert set(examples.draw(200, np.random.default_rng(0))[1]) == {"one", "two", "three", "four"}


def test_tables_splits_and_subfolders(folder, vae, tmp_path):
    data = folder(["file_name,text", '"train/sub/a.png","red, blue"'])
    (data / "train" / "sub").mkdir(parents=True)
    paint(data / "train" / "sub" / "a.png")
    (data / "metadata.jsonl").unlink()
    (data / "train" / "metadata.csv").write_text('\ufefffile_name,text\nsub/a.png,"red, blue"\n')
    examples = open_folder(data, vae, tmp_path / "out")
    assert examples.draw(1, np.random.default_rng(0))[1] == ["red, blue"]


def test_a_few_unreadable_pictures_are_left_out_and_told_once(folder, vae, tmp_path):
    data = folder([line(i) for i in range(40)])
    (data / "7.png").unlink()
    (data / "9.png").write_bytes(b"no picture")
    said = []
    for _ in range(2):
        examples = open_folder(data, vae, tmp_path / "out", say=said.append)
    assert len(examples.captions) == 38 and ("picture 7",) not in examples.captions
    told = [text for text in said if "left out" in text]
    assert len(told) == 2 and told[0].startswith("2 of 40 pictures are left out")
    assert "7.png: no such file" in told[0] and "9.png" in told[0]
    drawn = set(examples.draw(400, np.random.default_rng(0))[1])
    assert "picture 8" in drawn and "picture 9" not in drawn


def test_too_many_unreadable_pictures_are_refused(folder, vae, tmp_path):
    data = folder([line(i) for i in range(20)])
    (data / "3.png").write_bytes((data / "3.png").read_bytes()[:50])
    (data / "5.png").unlink()
    with pytest.raises(InvalidRequest, match=r"2 of 20 pictures cannot be used, and at most 5%.*5\.png"):
        open_folder(data, vae, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_hostile_pictures_are_not_decoded(folder, vae, tmp_path):
    """A header that promises 900 million pixels, an SVG, and a pipe that nobody writes to."""
    data = folder([line(i) for i in range(60)])
    bomb = bytearray((data / "0.png").read_bytes())
    bomb[16:24] = (30000).to_bytes(4, "big") * 2
    (data / "0.png").write_bytes(bomb)
    (data / "1.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (data / "2.png").unlink()
    os.mkfifo(data / "2.png")
    assert len(open_folder(data, vae, tmp_path / "out").captions) == 57


def test_small_pictures_and_empty_captions_are_told(folder, vae, tmp_path):
    data = folder([line(0), line(1, "")])
    paint(data / "0.png", size=(8, 30))
    said = []
    examples = open_folder(data, vae, tmp_path / "out", say=said.append)
    assert "1 of 2 pictures are smaller than 16x16 and were enlarged" in said
    assert any(text.startswith("1 of 2 pictures have an empty caption") for text in said)
    assert "" in examples.draw(20, np.random.default_rng(0))[1]


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ([], "is empty"),
        (["{"], "line 1: is no JSON"),
        (["[" * 100_000], "line 1: is no JSON"),
        (["[1]"], "line 1: is no JSON object"),
        ([line(0), {"text": "x"}], "line 2: has no 'file_name'"),
        ([{"file_name": 3, "text": "x"}], "line 1: has no 'file_name'"),
        (
            [{"file_name": "a.png", "label": "x"}],
            "line 1: has no caption: one of 'text', 'caption', 'prompt'",
        ),
        ([{"file_name": "a.png", "text": None}], "line 1: has no caption"),
        ([{"file_name": "a.png", "text": ["x", 3]}], "line 1: has no caption"),
        ([{"file_name": "a.png", "text": []}], "line 1: has no caption"),
        ([{"file_name": "../x.png", "text": "x"}], r"line 1: file_name '\.\./x\.png' leaves the folder"),
        ([{"file_name": "a/../../x.png", "text": "x"}], "leaves the folder"),
        ([{"file_name": "/etc/x.png", "text": "x"}], "leaves the folder"),
        ([{"file_name": "a\0.jpg", "text": "x"}], "leaves the folder"),
        ([line(0, "")], "every caption is empty"),
    ],
)
def test_metadata_that_cannot_be_used_is_refused_by_line(lines, match, folder, vae, tmp_path):
    with pytest.raises(InvalidRequest, match=match) as refusal:
        open_folder(folder(lines), vae, tmp_path / "out")
    assert '{"file_name": "0001.png", "text":' in str(refusal.value)


def test_tables_that_cannot_be_used_are_refused(folder, vae, tmp_path):
    data = folder(["file_name,text", "a.png,red, blue"], "metadata.csv")
    with pytest.raises(InvalidRequest, match=r"line 2: has more fields .* double quotes"):
        open_folder(data, vae, tmp_path / "out")
    (data / "metadata.csv").write_bytes(b"file_name,text\na.png,\xff\n")
    with pytest.raises(InvalidRequest, match="no UTF-8"):
        open_folder(data, vae, tmp_path / "out")
    (data / "metadata.jsonl").write_text("{}")
    with pytest.raises(InvalidRequest, match=r"has metadata\.jsonl and metadata\.csv"):
        open_folder(data, vae, tmp_path / "out")


def test_folders_without_captions_are_refused(vae, tmp_path):
    paint(tmp_path / "a.png")
    with pytest.raises(InvalidRequest, match=r'neither metadata\.jsonl nor .*\{"file_name": "0001\.png"'):
        open_folder(tmp_path, vae, tmp_path / "out")
    with pytest.raises(InvalidRequest, match="missing: no such folder"):
        open_folder(tmp_path / "missing", vae, tmp_path / "out")


@pytest.mark.parametrize("side", [0, 1, 15])
def test_sides_that_the_vae_does_not_take_are_refused(side, folder, vae, tmp_path):
    with pytest.raises(InvalidRequest, match=f"side {side}: must be a multiple of 2"):
        open_folder(folder([line(0)]), vae, tmp_path / "out", side=side)
