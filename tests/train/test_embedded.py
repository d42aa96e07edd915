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


def test_clip_tokenizer_pads_as_asked_and_knows_words():
    texts = ["noto red apple", "noto green apple"] * 50
    first = tokenizers.train_clip(texts, 600, 8)
    second = tokenizers.train_clip(texts, 600, 8, pad="!")
    assert first.tokenize("Noto red APPLE") == ["noto</w>", "red</w>", "apple</w>"]
    assert first("red", padding="max_length", max_length=8).input_ids[-1] == first.eos_token_id
    assert second("red", padding="max_length", max_length=8).input_ids[-1] == 0


def test_group_norm_agrees_with_torch():
    torch.manual_seed(0)
    reference = torch.nn.GroupNorm(4, 32)
    torch.nn.init.normal_(reference.weight)
    fast = use_channels_last(torch.nn.Sequential(torch.nn.GroupNorm(4, 32)))
    fast[0].load_state_dict(reference.state_dict())
    x = torch.randn(2, 32, 8, 8).contiguous(memory_format=torch.channels_last)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    gradient = torch.randn(2, 32, 8, 8)
    reference(a).backward(gradient)
    fast(b).backward(gradient)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reference.weight.grad, fast[0].weight.grad, rtol=1e-4, atol=1e-4)


def test_ema_follows_the_published_warm_up():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = state.Ema(model, 0.9999)
    torch.nn.init.ones_(model.weight)
    ema.update(model)
    ema.update(model)
    first = 1 - 1 / 10
    assert float(ema.shadow["weight"]) == pytest.approx(first + (1 - first) * (1 - 2 / 11))


def test_a_failed_write_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    state.save_checkpoint(path, {"step": 1})

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(SfumatoError, match="last good one"):
        state.save_checkpoint(path, {"step": 2})
    assert state.load_checkpoint(path, {}) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_checkpoint_of_another_architecture_is_refused(tmp_path):
    state.save_checkpoint(tmp_path / "c.pt", {"step": 1, "model": torch.nn.Linear(2, 2).state_dict()})
    with pytest.raises(InvalidRequest, match="another architecture"):
        state.load_checkpoint(tmp_path / "c.pt", {"model": torch.nn.Linear(3, 3)})


@pytest.fixture
def vae(data, tmp_path):
    autoencoder.train(data, tmp_path / "vae", autoencoder.Plan(steps=2, batch=2), say=lambda _: None)
    return tmp_path / "vae" / "vae"


def test_autoencoder_centers_its_latents(data, vae):
    model = AutoencoderKL.from_pretrained(vae)
    pictures, records = dataset.load(data)
    latents = autoencoder.encode(model, pictures[dataset.indices(records, "train")])
    assert latents.shape[1:] == (12, 16, 16)
    assert float((latents * model.config.scaling_factor).std()) == pytest.approx(1, abs=0.05)
    assert latents.mean((0, 2, 3)).abs().max() < 0.05 * latents.std()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(models.MODELS))
def test_a_resumed_run_equals_an_uninterrupted_one(name, data, vae, tmp_path):
    def run(folder, *lengths):
        for steps in lengths:
            plan = diffusion.Plan(steps=4, stop_at=steps, batch=2, save_every=1)
            diffusion.train(name, data, vae, tmp_path / folder, plan, say=lambda _: None)
        return torch.load(tmp_path / folder / "checkpoint.pt", weights_only=True)

    whole, resumed = run("whole", 4), run("resumed", 2, 4)
    for key, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][key]), key
    assert (tmp_path / "resumed/model/model_index.json").exists()


def test_unknown_model_is_named(data, vae, tmp_path):
    with pytest.raises(InvalidRequest, match="mini-sd"):
        diffusion.train("maxi", data, vae, tmp_path / "out", diffusion.Plan(steps=1))


@pytest.mark.slow
def test_the_commands_train_package_and_convert(data, tmp_path, capsys):
    """The whole way of `make train`, with runs of two steps."""

    def sfumato(*arguments):
        assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err

    short = ("--data", data, "--steps", 2, "--batch", 2, "--quiet")
    train = ("train", "embedded")
    sfumato(*train, "vae", tmp_path / "vae", *short)
    sfumato(
        *train, "vae", tmp_path / "decoder", *short, "--start", tmp_path / "vae" / "vae", "--freeze-encoder"
    )
    encoders = [AutoencoderKL.from_pretrained(tmp_path / run / "vae").encoder for run in ("vae", "decoder")]
    assert all(map(torch.equal, encoders[0].parameters(), encoders[1].parameters()))
    sfumato(*train, "diffusion", "mini", tmp_path / "mini", *short, "--vae", tmp_path / "vae" / "vae")
    vae = tmp_path / "decoder" / "vae"
    sfumato(*train, "package", "mini", tmp_path / "mini" / "model", tmp_path / "model", "--vae", vae)
    sfumato("convert", tmp_path / "model", tmp_path / "artifact", "--without-t5", "--quiet")
    capsys.readouterr()
    sfumato("generate", "noto red apple", "-m", tmp_path / "artifact", "--json", "-o", tmp_path / "a.png")
    report = json.loads(capsys.readouterr().out)
    assert report["steps"] == 20 and (tmp_path / "a.png").exists()


def test_latents_follow_their_autoencoder(data, vae, tmp_path):
    """Another encoder in the same run's folder must not be answered with the old latents."""
    pictures, _ = dataset.load(data)
    rows = np.arange(4)
    model = AutoencoderKL.from_pretrained(vae)
    first = diffusion._cached_latents(model, pictures, rows, tmp_path)
    assert torch.equal(diffusion._cached_latents(model, pictures, rows, tmp_path), first)
    with torch.no_grad():
        model.encoder.conv_out.bias += 1
    assert not torch.equal(diffusion._cached_latents(model, pictures, rows, tmp_path), first)
