"""The embedded diffusion models: all train, resume and save; the commands work together."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline

from sfumato.cli import main
from sfumato.errors import InvalidRequest, MissingDependency
from sfumato.train.embedded import dataset, diffusion, models
from sfumato.train.embedded.package import package
from sfumato.train.loop import Plan


def train(name, data, vae, out, steps=1, **options):
    plan = Plan(steps=steps, batch=2, rate=1e-3, save_every=1, stop_at=options.pop("stop_at", None))
    diffusion.train(name, data, vae, out, plan, diffusion.Lessons(), say=lambda _: None, **options)
    return out / "model"


@pytest.mark.slow
@pytest.mark.parametrize("name", list(models.MODELS))
def test_a_resumed_run_equals_an_uninterrupted_one(name, data, vae, tmp_path):
    train(name, data, vae, tmp_path / "whole", 4)
    train(name, data, vae, tmp_path / "resumed", 4, stop_at=2)
    model = train(name, data, vae, tmp_path / "resumed", 4)
    whole, resumed = (
        torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("whole", "resumed")
    )
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    DiffusionPipeline.from_pretrained(model)


def test_a_model_starts_from_anothers_weights_and_tokenizers(data, vae, tmp_path):
    first = train("mini-sd", data, vae, tmp_path / "first")
    texts = models.Texts([], first)
    model = models.known("mini-xl")(texts)
    assert 0.01 < models.start_from(model, first) < 0.5
    assert model.tokenizer.get_vocab() == models.known("mini-sd")(texts).tokenizer.get_vocab()
    with pytest.raises(InvalidRequest, match="no weights for this model"):
        models.start_from(model, vae)


def test_vega_learns_from_its_teacher(data, vae, tmp_path):
    teacher = train("mini-xl", data, vae, tmp_path / "xl")
    lines = []
    plan, lessons, out = (
        Plan(steps=2, batch=2, rate=1e-3, log_every=1),
        diffusion.Lessons(),
        tmp_path / "vega",
    )
    diffusion.train("mini-vega", data, vae, out, plan, lessons, (teacher,), teacher, lines.append)
    assert any("copied" in line for line in lines)
    unet = DiffusionPipeline.from_pretrained(out / "model").unet
    assert len(unet.mid_block.attentions) == 0
    with pytest.raises(InvalidRequest, match="only mini-vega"):
        train("mini-sd", data, vae, tmp_path / "sd", teacher=teacher)
    other = train("mini-sd", data, vae, tmp_path / "other")
    with pytest.raises(InvalidRequest, match=r"not all weights of a mini-xl"):
        train("mini-vega", data, vae, tmp_path / "vega2", teacher=other)


def test_vega_reads_its_teachers_words(data, vae, tmp_path, monkeypatch):
    """Without a start of its own it gets the teacher's tokenizers: the teacher is asked with its ids."""
    teacher = train("mini-xl", data, vae, tmp_path / "xl")
    monkeypatch.setattr(models.Texts, "clip", lambda texts, *_, **__: pytest.fail(f"{texts.start}"))
    with pytest.raises(pytest.fail.Exception, match=str(teacher)):
        train("mini-vega", data, vae, tmp_path / "vega", teacher=teacher)


def test_a_folder_without_autoencoder_is_named(data, vae, tmp_path):
    with pytest.raises(InvalidRequest, match=r"nowhere: no autoencoder \(config.json is missing\)"):
        train("mini-sd", data, tmp_path / "nowhere", tmp_path / "sd")
    model = train("mini-sd", data, vae, tmp_path / "sd")
    with pytest.raises(InvalidRequest, match="no autoencoder"):
        package("mini-sd", model, vae.parent, tmp_path / "packaged")
    assert not (tmp_path / "packaged").exists()
    package("mini-sd", model, None, tmp_path / "packaged")
    assert {path.name for path in (tmp_path / "packaged").iterdir()} >= {"unet", "text_encoder"}
    assert not (tmp_path / "packaged/vae").exists()


def test_size_conditioning_marks_the_pictures_that_were_brought_up(data, vae):
    """Pictures of 64x64 get their small latents, their size and, for the refiner, the low score."""
    pictures, _ = dataset.load(data)
    torch.manual_seed(0)
    model = models.known("mini-xl-refiner")(models.Texts(["noto red apple"]))
    sides = torch.tensor([64, 128])
    _, added = model.conditioning(sides, [torch.ones(2, 16, dtype=torch.int64)])
    assert added["time_ids"].tolist() == [[64, 64, 0, 0, 2.5], [128, 128, 0, 0, 6.0]]
    _, added = models.known("mini-xl")(models.Texts(["noto red apple"])).conditioning(
        sides, [torch.ones(2, 16, dtype=torch.int64)] * 2
    )
    assert added["time_ids"].tolist() == [[64, 64, 0, 0, 128, 128], [128, 128, 0, 0, 128, 128]]
    blurred = diffusion.brought_up(pictures[:2])
    assert blurred.shape == pictures[:2].shape and (blurred != pictures[:2]).any()


def test_unknown_model_is_named(data, vae, tmp_path):
    with pytest.raises(InvalidRequest, match="mini-sd"):
        train("maxi", data, vae, tmp_path / "out")


def test_a_missing_compiler_is_found_before_the_latents_are_encoded(data, vae, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingDependency, match="no-such-compiler"):
        train("mini-sd", data, vae, tmp_path / "out", fused=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["mini-sd", "mini-xl", "mini-xl-refiner"])
def test_unets_are_trained_on_what_the_pipelines_show_them(name):
    """Latents of unit variance; what has been sampled in between does not matter."""
    model = models.known(name)(models.Texts(["noto red apple"]))
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 12, 16, 16, generator=generator)
    timesteps = torch.tensor([1, 100, 900])
    noised, epsilon = model.noised(latents, noise, timesteps)
    ddpm = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    torch.testing.assert_close(noised, ddpm.add_noise(latents, noise, timesteps))
    torch.testing.assert_close(epsilon, noise)
    model.scheduler.set_timesteps(7)
    torch.testing.assert_close(model.noised(latents, noise, timesteps), (noised, epsilon))


def test_sampling_begins_where_unets_are_trained_on_noise_alone():
    """The epsilon of the first step leads from the noise to the picture, of which the noise tells nothing."""
    model = models.known("mini-sd")(models.Texts(["noto red apple"]))
    latents, noise = torch.randn(2, 1, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    model.scheduler.set_timesteps(20)
    first = model.scheduler.timesteps[:1]
    noised, epsilon = model.noised(latents, noise, first)
    torch.testing.assert_close(noised, noise)
    clean = model.scheduler.step(epsilon, int(first), noised).pred_original_sample
    torch.testing.assert_close(clean, latents, atol=1e-4, rtol=1e-4)


def test_refiner_learns_the_last_fifth_alone(data):
    model = models.known("mini-xl-refiner")(models.Texts(["noto red apple"]))
    examples = models.Examples(torch.zeros(500, 12, 16, 16), [""] * 500, torch.full((500,), 128))
    timesteps = model.draw(examples, torch.Generator().manual_seed(0))[2]
    assert 150 < int(timesteps.max()) < 200


def test_unets_learn_more_from_noisy_timesteps(data):
    model = models.known("mini-sd")(models.Texts(["noto red apple"]))
    examples = models.Examples(torch.zeros(2000, 12, 16, 16), [""] * 2000, torch.full((2000,), 128))
    timesteps = model.draw(examples, torch.Generator().manual_seed(0))[2]
    assert 0 <= int(timesteps.min()) < 50 and 990 <= int(timesteps.max()) < 1000
    assert 0.22 < float((timesteps == 999).float().mean()) < 0.28
    assert 530 < float(timesteps[timesteps < 999].float().mean()) < 580


def test_mini_is_shown_noise_alone_and_all_levels_of_noise(data):
    model = models.known("mini")(models.Texts(["noto red apple"]))
    examples = models.Examples(torch.zeros(2000, 12, 16, 16), [""] * 2000, torch.full((2000,), 128))
    sigmas = model.draw(examples, torch.Generator().manual_seed(0))[2]
    assert 0.17 < float((sigmas == 1).float().mean()) < 0.23
    assert float(sigmas.min()) < 0.05
    assert 0.47 < float(sigmas[sigmas < 1].mean()) < 0.53


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
