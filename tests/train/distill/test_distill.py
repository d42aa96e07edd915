"""Distillation to few steps: what is trained, how it resumes, and that its LoRA works everywhere."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    LCMScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from peft import PeftModel

from sfumato import convert
from sfumato.cli import main
from sfumato.convert.checkpoints import open_checkpoint
from sfumato.convert.lora import SAMPLING, fuse_all, read_lora
from sfumato.convert.weights import load_module
from sfumato.errors import CheckpointError, InvalidRequest
from sfumato.train import loop
from sfumato.train.distill import flash, lcm, lora, run, segments, source, trajectory
from sfumato.train.embedded.dataset import Record
from sfumato.train.examples import RecordExamples

PIPELINES = {
    "sd": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sd3": StableDiffusion3Pipeline,
}
SIDE = 8


def examples(channels: int) -> RecordExamples:
    latents = torch.randn(4, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    records = [Record("noto", n, n, (n,), (), "food", "train") for n in ("apple", "house", "cat", "face")]
    return RecordExamples(latents, records, np.full(4, 0.25))


@pytest.fixture
def distill(checkpoints, tmp_path, monkeypatch):
    """`distill(name, **plan)`: a short run on the tiny checkpoint `name`; returns its folder."""
    monkeypatch.setattr(
        run, "open_examples", lambda data, vae, out, **_: examples(vae.config.latent_channels)
    )

    def start(name, folder="out", rank=4, few_steps=4, method=None, **plan):
        plan = loop.Plan(**{"steps": 3, "batch": 2, "rate": 1e-2, "ema_decay": 0.0, **plan})
        settings = run.Settings(method=method, rank=rank, few_steps=few_steps)
        run.distill(checkpoints(name), tmp_path, tmp_path / folder, settings, plan, say=lambda _: None)
        return tmp_path / folder

    return start


def task_of(name, checkpoints, kind=None):
    base = source.open_source(checkpoints(name))
    torch.manual_seed(0)
    lora.add_lora(base.denoiser, base.family.denoiser, 4)
    kind = kind or (segments.SegmentsTask if name.startswith("sd3") else lcm.LcmTask)
    return kind(base, examples(base.pipe.vae.config.latent_channels), 3.0, 4)


def losses(task, steps, rate):
    """Losses on one batch, over and over."""
    trained = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, rate)
    batch = task.draw(4, np.random.default_rng(0), torch.Generator().manual_seed(0))
    for _ in range(steps):
        loss = task(*batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield float(loss.detach())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sd", lcm.LcmTask),
        ("sd-v", lcm.LcmTask),
        ("sdxl", lcm.LcmTask),
        ("sd", segments.SegmentsTask),
        ("sdxl", segments.SegmentsTask),
        ("sd3", segments.SegmentsTask),
        ("sd3", flash.FlashTask),
        ("sd3-no-t5", segments.SegmentsTask),
    ],
)
def test_only_the_lora_learns_and_it_does(name, kind, checkpoints):
    task = task_of(name, checkpoints, kind)
    trained = {name for name, p in task.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    before = {name: value.clone() for name, value in task.named_parameters()}
    seen = list(losses(task, 20, 3e-3))
    assert seen[-1] < 0.9 * seen[0]
    changed = {name for name, value in task.named_parameters() if not torch.equal(value, before[name])}
    assert changed == trained


def test_convolutions_and_attention_are_adapted(checkpoints):
    trained = {name for name, p in task_of("sd", checkpoints).named_parameters() if p.requires_grad}
    for layer in ("resnets.0.conv1", "attn2.to_k", "upsamplers.0.conv"):
        assert any(layer in name for name in trained), layer


def test_the_teacher_is_the_model_without_lora(checkpoints):
    task = task_of("sd3", checkpoints)
    captions, noise, without_t5 = task.draw(2, np.random.default_rng(0), torch.Generator().manual_seed(0))
    path = task.trajectory
    condition, _ = path.conditions(captions, without_t5, noise)

    def velocity():
        return path.slope(noise, torch.ones(2), condition)

    with lora.as_teacher(path.denoiser):
        before = velocity()
    assert not before.requires_grad
    list(losses(task, 3, 1e-2))
    with lora.as_teacher(path.denoiser):
        assert torch.equal(velocity(), before)
    assert not torch.equal(velocity(), before)
    assert velocity().requires_grad


@torch.no_grad()
def test_the_first_step_is_learned_from_noise_alone(checkpoints):
    """What it has seen of the picture elsewhere, it will not see when it is used."""
    task = task_of("sd", checkpoints)
    latents, captions, noise, _ = task.draw(2, np.random.default_rng(0), torch.Generator().manual_seed(0))

    def loss(latents, index):
        return float(task(latents, captions, noise, torch.full((2,), index))["loss"])

    last = len(task.taught) - 1
    assert loss(latents, last) == loss(-latents, last)
    assert loss(latents, last - 1) != loss(-latents, last - 1)


def test_boundary_is_that_of_diffusers(checkpoints):
    scheduler = LCMScheduler()
    for timestep in (0, 19, 259, 999):
        skip, out = lcm.boundary(torch.tensor([timestep]))
        theirs = scheduler.get_scalings_for_boundary_condition_discrete(torch.tensor(timestep))
        assert (float(skip), float(out)) == pytest.approx([float(value) for value in theirs])


@pytest.mark.parametrize("name", ["sd", "sd-v"])
def test_the_student_says_what_diffusers_scheduler_makes_of_it(name, checkpoints):
    task = task_of(name, checkpoints)
    list(losses(task, 2, 1e-2))
    x = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    condition = task.source.encode(["red apple"], 64, x.device)
    scheduler = task.sampling.scheduler_from(task.source.pipe.scheduler)
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            predicted = task.predict(x, timestep[None], condition)
            theirs = scheduler.step(predicted, timestep, x).denoised
            torch.testing.assert_close(task.consistent(x, timestep[None], condition), theirs)
            scheduler._step_index = None
        torch.testing.assert_close(task.consistent(x, torch.tensor([0]), condition), x)


def test_the_teachers_solver_is_of_second_order(checkpoints, monkeypatch):
    path = task_of("sd3", checkpoints).trajectory
    monkeypatch.setattr(path, "guided", lambda x, position, both: x)  # its flow ends at x * exp(-sigma)
    x, start = torch.ones(2, 1, 1, 1), torch.tensor([1.0, 0.3])
    nodes = [start, start / 2, 0 * start]
    points = path.solve(x, nodes, {}, steps=12)
    for point, node in zip(points, nodes, strict=True):
        expected = torch.exp(path.level(node) - path.level(start))
        torch.testing.assert_close(point.flatten(), expected, rtol=0.012, atol=0)


@pytest.mark.parametrize("name", ["sd", "sd-v", "sdxl"])
def test_a_unets_trajectory_is_that_of_diffusers(name, checkpoints):
    """Euler's method over the student's steps, guided, ends where diffusers' scheduler ends."""
    path = task_of(name, checkpoints, segments.SegmentsTask).trajectory
    noise = torch.randn(2, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    captions = ["red apple", "cat"]
    _, both = path.conditions(captions, torch.zeros(2, dtype=torch.bool), noise)
    scheduler = task_of(name, checkpoints, segments.SegmentsTask).sampling.scheduler_from(
        path.source.pipe.scheduler
    )
    scheduler.set_timesteps(4)
    x = theirs = scheduler.init_noise_sigma * noise
    nodes = path.nodes()
    torch.testing.assert_close(path.level(nodes), scheduler.sigmas, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(nodes[:-1] - 1, scheduler.timesteps)
    with torch.no_grad():
        for i, timestep in enumerate(scheduler.timesteps):
            here, following = (node.expand(2) for node in nodes[i : i + 2])
            x = x + (path.level(following) - path.level(here))[0] * path.guided(x, here, both)
            seen = scheduler.scale_model_input(theirs.repeat(2, 1, 1, 1), timestep)
            given, empty = path.denoiser(seen, timestep, **both, return_dict=False)[0].chunk(2)
            theirs = scheduler.step(empty + path.guidance * (given - empty), timestep, theirs).prev_sample
    torch.testing.assert_close(x, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_slopes_cost_what_they_move(name, checkpoints):
    path = task_of(name, checkpoints, segments.SegmentsTask).trajectory
    weights = path.weights()
    assert len(weights) == len(path.positions)
    assert (weights > 0).all() and float(weights.sum()) == pytest.approx(1)
    assert weights.argmax() == (-path.level(path.nodes()).diff()).argmax()


def test_the_student_learns_where_it_will_be_used(checkpoints):
    task = task_of("sd3", checkpoints)
    scheduler = task.sampling.scheduler_from(task.trajectory.source.pipe.scheduler)
    scheduler.set_timesteps(4)
    assert scheduler.sigmas[3] < trajectory.LEAST_LEVEL
    path = task.trajectory
    torch.testing.assert_close(path.level(path.positions), scheduler.sigmas[:3])


def test_half_of_the_captions_go_without_t5(checkpoints):
    task = task_of("sd3", checkpoints)
    zeroed = torch.tensor([True, False])
    condition, both = task.trajectory.conditions(["red apple", "cat"], zeroed, torch.zeros(2, 16, SIDE, SIDE))
    t5 = both["encoder_hidden_states"][:, 16:]
    assert t5.abs().amax((1, 2)).gt(0).tolist() == [False, True, False, True]
    assert torch.equal(condition["encoder_hidden_states"], both["encoder_hidden_states"][:2])


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_the_lora_says_the_same_in_diffusers_peft_and_here(name, checkpoints, distill, tmp_path):
    out = distill(name)
    part = "transformer" if name == "sd3" else "unet"
    pipes = [PIPELINES[name].from_pretrained(checkpoints(name)) for _ in range(3)]
    plain = getattr(pipes[0], part)
    pipes[1].load_lora_weights(out)
    loaded = getattr(pipes[1], part)
    peft = PeftModel.from_pretrained(getattr(pipes[2], part), out).eval()
    generator = torch.Generator().manual_seed(3)
    shapes = {"sample": (1, 4, 8, 8), "encoder_hidden_states": (1, 16, 32)}
    if name == "sdxl":
        shapes = {"sample": (1, 4, 8, 8), "encoder_hidden_states": (1, 16, 80)}
    if name == "sd3":
        shapes = {"hidden_states": (1, 16, 8, 8), "encoder_hidden_states": (1, 40, 96)}
        shapes |= {"pooled_projections": (1, 80)}
    inputs = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    inputs["timestep"] = torch.tensor([500.0])
    if name == "sdxl":
        inputs["added_cond_kwargs"] = {"text_embeds": torch.ones(1, 48), "time_ids": torch.full((1, 6), 64.0)}
    with torch.no_grad():
        expected = loaded(**inputs, return_dict=False)[0]
        torch.testing.assert_close(peft(**inputs, return_dict=False)[0], expected, atol=1e-5, rtol=1e-5)
        assert (plain(**inputs, return_dict=False)[0] - expected).abs().max() > 1e-3
    checkpoint = open_checkpoint(checkpoints(name))
    for file in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors"):
        fused = load_module(checkpoint.parts[part])
        fuse_all([read_lora(out / file, 1.0, checkpoint)], part, fused)
        with torch.no_grad():
            torch.testing.assert_close(fused(**inputs, return_dict=False)[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "method", "sampler", "guidance"),
    [
        ("sd", "lcm", "lcm", 1.0),
        ("sdxl", "segments", "euler", 1.0),
        ("sd3", "segments", "flow-euler", 0.0),
        ("sd3", "flash", "flow-renoise", 0.0),
    ],
)
def test_a_converted_student_knows_how_it_is_sampled(
    name, method, sampler, guidance, checkpoints, distill, tmp_path
):
    file = distill(name, method=method, few_steps=3) / "adapter_model.safetensors"
    artifact = convert(checkpoints(name), tmp_path / "model", loras=[(file, 1.0)])
    sampling = artifact.manifest.sampling
    assert (sampling.sampler, sampling.steps, sampling.guidance) == (sampler, 3, guidance)
    index = json.loads((artifact.path / "model_index.json").read_text())
    scheduler = json.loads((artifact.path / "scheduler/scheduler_config.json").read_text())
    assert index["scheduler"] == ["diffusers", scheduler["_class_name"]]


def test_a_resumed_run_equals_an_uninterrupted_one(distill):
    whole = torch.load(distill("sd3", "whole", steps=4) / "checkpoint.pt", weights_only=True)
    distill("sd3", "resumed", steps=4, stop_at=2)
    resumed = torch.load(distill("sd3", "resumed", steps=4) / "checkpoint.pt", weights_only=True)
    assert flatten(whole).keys() == flatten(resumed).keys()
    for key, value in flatten(whole).items():
        assert torch.equal(value, flatten(resumed)[key]), key


def flatten(state, path=""):
    """Every tensor and number of a checkpoint by its path."""
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flatten(value, f"{path}/{key}").items()}
    if isinstance(state, list):
        return flatten(dict(enumerate(state)), path)
    return {path: state if isinstance(state, torch.Tensor) else torch.tensor(state or 0)}


def test_few_step_pictures_on_the_way(distill):
    assert (distill("sd", sample_every=2) / "samples-2.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("change", "was"),
    [
        ({"rank": 8}, "rank 4, now it is 8"),
        ({"few_steps": 2}, "few_steps 4, now it is 2"),
        ({"method": "segments"}, "method 'lcm', now it is 'segments'"),
        ({"seed": 1}, "seed 0, now it is 1"),
    ],
)
def test_a_run_of_other_settings_is_refused(change, was, distill):
    distill("sd", steps=1)
    with pytest.raises(InvalidRequest, match=f"was begun with {was}"):
        distill("sd", **change)


def refusal(*arguments, capsys):
    assert main(["train", "distill", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert not captured.out and captured.err.count("\n") == 1
    return captured.err


def test_what_cannot_be_distilled_is_named(checkpoints, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    out, data = tmp_path / "out", ("--data", tmp_path / "empty")
    assert "model_index.json" in refusal(tmp_path / "empty", out, *data, capsys=capsys)
    message = refusal(checkpoints("sd"), out, *data, "--method", "flash", capsys=capsys)
    assert "'flash'" in message and "use lcm or segments" in message
    assert "rank 0" in refusal(checkpoints("sd"), out, *data, "--rank", 0, capsys=capsys)
    assert "few steps 0" in refusal(checkpoints("sd"), out, *data, "--few-steps", 0, capsys=capsys)
    assert "sfumato train embedded data" in refusal(checkpoints("sd"), out, *data, capsys=capsys)


@pytest.mark.parametrize("told", ["[]", "{", "{}", '{"scheduler": 3, "steps": 4, "guidance": 1}'])
def test_damaged_sampling_is_refused(told, checkpoints, distill, tmp_path):
    from safetensors.torch import load_file, save_file

    file = distill("sd") / "pytorch_lora_weights.safetensors"
    save_file(load_file(file), tmp_path / "odd.safetensors", {SAMPLING: told})
    with pytest.raises(CheckpointError, match=r"odd.safetensors: sfumato.sampling"):
        convert(checkpoints("sd"), tmp_path / "model", loras=[(tmp_path / "odd.safetensors", 1.0)])
