"""Several LoRAs at once, and how a model is sampled that LoRAs distilled to few steps."""

import json
import logging

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, PNDMScheduler
from safetensors.torch import save_file

from sfumato.convert.checkpoints import open_checkpoint
from sfumato.convert.defaults import sampling
from sfumato.convert.lora import fuse_all, read_lora, sampled
from sfumato.convert.weights import load_module
from sfumato.errors import CheckpointError, InvalidRequest

NAME = "unet.mid_block.resnets.0.conv1"


def write(file, seed, *, size=0.2, part="unet", metadata=None):
    name, width = (NAME, 32) if part == "unet" else ("transformer.transformer_blocks.0.attn.to_q", 64)
    kernel = (3, 3) if part == "unet" else ()
    generator = torch.Generator().manual_seed(seed)
    down = size * torch.randn((4, width, *kernel), generator=generator)
    up = size * torch.randn((width, 4, *((1,) * len(kernel))), generator=generator)
    file.parent.mkdir(exist_ok=True)
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, file, metadata)
    return file, (up.flatten(1) @ down.flatten(1)).reshape(width, width, *kernel)


def test_several_loras_are_summed_and_rounded_once(checkpoints, tmp_path):
    checkpoint = open_checkpoint(checkpoints("sd"))
    scales = (1.0, -0.7, 0.3)
    files = [write(tmp_path / f"{i}.safetensors", i) for i in range(3)]
    loras = [read_lora(file, scale, checkpoint) for (file, _), scale in zip(files, scales, strict=True)]
    plain, module, one_by_one = (load_module(checkpoint.parts["unet"]).half() for _ in range(3))
    fuse_all(loras, "unet", module)
    fuse_all(loras, "vae", module)
    expected = plain.mid_block.resnets[0].conv1.weight.double()
    for (_, change), scale in zip(files, scales, strict=True):
        expected = expected + scale * change.double()
    weight = module.mid_block.resnets[0].conv1.weight
    assert (weight == expected.half()).float().mean() > 0.999
    for lora in loras:
        fuse_all([lora], "unet", one_by_one)
    assert (one_by_one.mid_block.resnets[0].conv1.weight == expected.half()).float().mean() < 0.99


def test_weights_too_large_for_sixteen_bits(checkpoints, tmp_path):
    checkpoint = open_checkpoint(checkpoints("sd"))
    file, _ = write(tmp_path / "large.safetensors", 0, size=1000.0)
    module = load_module(checkpoint.parts["unet"]).half()
    with pytest.raises(CheckpointError, match=r"large\.safetensors.*smaller LoRA scale"):
        fuse_all([read_lora(file, 1.0, checkpoint)], "unet", module)


def test_lcm_is_sampled_as_diffusers_would(checkpoints, tmp_path):
    folder = checkpoints("sd")
    checkpoint = open_checkpoint(folder)
    lora = read_lora(write(tmp_path / "style.safetensors", 0)[0], 1.0, checkpoint)
    changed = sampled(checkpoint, [lora], "lcm")
    base = PNDMScheduler.from_pretrained(folder, subfolder="scheduler")
    theirs, ours = LCMScheduler.from_config(base.config), LCMScheduler.from_config(changed.scheduler)
    assert {k: v for k, v in ours.config.items() if k[0] != "_"} == {
        k: v for k, v in theirs.config.items() if k[0] != "_"
    }
    said = sampling(changed.family, changed.scheduler, changed.index, {})
    assert (said.sampler, said.steps, said.guidance) == ("lcm", 4, 1.0)
    assert changed.index["scheduler"] == ["diffusers", "LCMScheduler"]
    assert sampled(checkpoint, [lora]) == checkpoint


def test_flash_renoises(checkpoints):
    checkpoint = open_checkpoint(checkpoints("sd3"))
    changed = sampled(checkpoint, [], "flash")
    said = sampling(changed.family, changed.scheduler, changed.index, {})
    assert (said.sampler, said.steps, said.guidance) == ("flow-renoise", 4, 0.0)
    assert said.scheduler["shift"] == 3.0


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_lightning_is_sampled_as_its_authors_say(name, checkpoints):
    """Of diffusers' schedulers Euler and DDIM, both trailing: the same pictures from the same predictions."""
    folder = checkpoints(name)
    changed = sampled(open_checkpoint(folder), [], "lightning")
    said = sampling(changed.family, changed.scheduler, changed.index, {})
    assert (said.sampler, said.steps, said.guidance) == ("euler", 4, 1.0)
    euler = EulerDiscreteScheduler.from_config(changed.scheduler)
    ddim = DDIMScheduler.from_config(
        changed.scheduler, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ends = []
    for scheduler in (euler, ddim):
        scheduler.set_timesteps(4)
        assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
        x = noise * scheduler.init_noise_sigma
        if scheduler is ddim:  # Euler's x is that of DDIM, divided by the share of signal
            x = x * euler.sigmas[0] / (euler.sigmas[0] ** 2 + 1).sqrt()
        for timestep in scheduler.timesteps:
            predicted = scheduler.scale_model_input(x, timestep).sin()
            x = scheduler.step(predicted, timestep, x).prev_sample
        ends.append(x)
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "role", "told"),
    [
        ("sd", "flash", "have lcm or lightning"),
        ("sd3", "lcm", "have flash"),
        ("sd3", "lightning", "have flash"),
        ("sd", "turbo", "lcm, lightning, flash"),
    ],
)
def test_roles_that_a_family_does_not_have(name, role, told, checkpoints):
    with pytest.raises(InvalidRequest, match=told):
        sampled(open_checkpoint(checkpoints(name)), [], role)


def test_a_role_goes_before_what_the_file_says(checkpoints, tmp_path):
    checkpoint = open_checkpoint(checkpoints("sd"))
    told = {"scheduler": {"_class_name": "EulerDiscreteScheduler"}, "steps": 9, "guidance": 2.0}
    metadata = {"sfumato.sampling": json.dumps(told)}
    lora = read_lora(write(tmp_path / "own.safetensors", 0, metadata=metadata)[0], 1.0, checkpoint)
    assert sampled(checkpoint, [lora]).index["defaults"] == {"steps": 9, "guidance": 2.0}
    assert sampled(checkpoint, [lora], "lcm").index["defaults"] == {"steps": 4, "guidance": 1.0}


@pytest.mark.parametrize(
    ("checkpoint", "path", "role"),
    [
        ("sd", "lcm-lora-sdv1-5/pytorch_lora_weights.safetensors", "lcm"),
        ("sd", "Segmind-VegaRT/pytorch_lora_weights.safetensors", "lcm"),
        ("sd", "style/LCM_LoRA.safetensors", "lcm"),
        ("sd3", "flash-sd3/lora.safetensors", "flash"),
        ("sdxl", "SDXL-Lightning/sdxl_lightning_4step_lora.safetensors", "lightning"),
        ("sd", "Hyper-SD/Hyper-SD15-8steps-lora.safetensors", "lightning"),
        ("sdxl", "loras/Hyper-SDXL-4steps-lora.safetensors", "lightning"),
        ("sd", "flashlight/style.safetensors", None),
        ("sd", "weather/lightning.safetensors", None),
    ],
)
def test_a_name_that_sounds_like_few_steps_is_only_told(
    checkpoint, path, role, checkpoints, tmp_path_factory, caplog
):
    opened = open_checkpoint(checkpoints(checkpoint))
    part = "transformer" if checkpoint == "sd3" else "unet"
    folder = tmp_path_factory.mktemp("given")
    lora = read_lora(write(folder / path, 0, part=part)[0], 1.0, opened)
    with caplog.at_level(logging.WARNING):
        assert sampled(opened, [lora]) == opened
    assert [record.name for record in caplog.records] == (["sfumato.convert.lora.sampling"] if role else [])
    assert not role or f"few-step {role}" in caplog.text
    caplog.clear()
    if role:
        sampled(opened, [lora], role)
    assert caplog.text == ""


def test_a_model_of_few_steps_takes_loras_for_style_alone(checkpoints, tmp_path, caplog):
    checkpoint = open_checkpoint(checkpoints("lcm"))
    file, _ = write(tmp_path / "lcm-style.safetensors", 0)
    lora = read_lora(file, 1.0, checkpoint)
    assert sampled(checkpoint, [lora]) == checkpoint
    assert not caplog.records
    told = {"scheduler": {"_class_name": "LCMScheduler"}, "steps": 4, "guidance": 1.0}
    metadata = {"sfumato.sampling": json.dumps(told)}
    distilled = read_lora(write(tmp_path / "four.safetensors", 0, metadata=metadata)[0], 1.0, checkpoint)
    for loras, few_step, says in (
        ([lora], "lcm", "few-step lcm: not for .*distilled to few steps already"),
        ([distilled], None, r"four\.safetensors: distils to few steps: not for"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            sampled(checkpoint, loras, few_step)
