"""Checkpoints whose UNet takes the guidance as an input: what their conversion says, and what is refused."""

import json
import shutil

import openvino as ov
import pytest

import sfumato
import tiny
from sfumato import Pipeline
from sfumato.artifact import MANIFEST, load_artifact
from sfumato.convert.checkpoints import open_checkpoint
from sfumato.convert.defaults import sampling
from sfumato.errors import ArtifactError, CheckpointError, InvalidRequest

SETTINGS = {"steps": 2, "size": (64, 64), "seed": 7}


@pytest.mark.parametrize(("name", "further"), [("lcm", set()), ("lcm-xl", {"text_embeds", "time_ids"})])
def test_the_manifest_says_what_the_network_takes(name, further, artifacts):
    artifact = load_artifact(artifacts(name))
    model = ov.Core().read_model(artifact.path / "unet" / "openvino_model.xml")
    ports = {port.get_any_name(): port.partial_shape for port in model.inputs}
    assert set(ports) == {"sample", "timestep", "encoder_hidden_states", "timestep_cond"} | further
    assert ports["timestep_cond"] == ov.PartialShape([-1, tiny.GUIDANCE_WIDTH])
    manifest = artifact.manifest
    assert manifest.family == {"lcm": "sd", "lcm-xl": "sdxl"}[name]
    assert manifest.conditioning.guidance_embedding_dim == tiny.GUIDANCE_WIDTH
    assert (manifest.sampling.sampler, manifest.sampling.steps, manifest.sampling.guidance) == ("lcm", 4, 8.5)


def test_any_scheduler_gives_way_to_lcm(checkpoints):
    """As of SDXL with the UNet of its latent consistency model in the own one's place."""
    opened = {name: open_checkpoint(checkpoints(name)) for name in ("sdxl", "lcm-xl")}
    scheduler, denoiser = opened["sdxl"].scheduler, opened["lcm-xl"].parts["unet"].config
    said = sampling(opened["sdxl"].family, scheduler, {}, denoiser)
    assert (said.sampler, said.steps, said.guidance) == ("lcm", 4, 8.5)
    own = {"defaults": {"steps": 2, "guidance": 6.0}}
    said = sampling(opened["sdxl"].family, scheduler, own, denoiser)
    assert (said.sampler, said.steps, said.guidance) == ("lcm", 2, 6.0)


def test_a_manifest_without_the_field_is_read_as_before(artifacts, tmp_path):
    for name in ("sd", "lcm"):
        folder = shutil.copytree(artifacts(name), tmp_path / name)
        manifest = json.loads((folder / MANIFEST).read_text())
        del manifest["conditioning"]["guidance_embedding_dim"]
        (folder / MANIFEST).write_text(json.dumps(manifest))
    assert load_artifact(tmp_path / "sd").manifest == load_artifact(artifacts("sd")).manifest
    with pytest.raises(
        ArtifactError, match=r"needs an input 'timestep_cond', .*convert the checkpoint again"
    ):
        Pipeline.load(tmp_path / "lcm")("a red apple", **SETTINGS)


def test_another_width_than_the_networks_is_refused(artifacts, tmp_path):
    folder = shutil.copytree(artifacts("lcm"), tmp_path / "other")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["conditioning"]["guidance_embedding_dim"] = 32
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(
        ArtifactError, match=r"input 'timestep_cond' is .* but \[1, 32\] fits the other parts"
    ):
        Pipeline.load(folder)("a red apple", **SETTINGS)


def test_a_width_that_cannot_be_is_named(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints("lcm"), tmp_path / "narrow")
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"time_cond_proj_dim": 2}))
    with pytest.raises(CheckpointError, match="guidance_embedding_dim cannot be 2"):
        sfumato.convert(folder, tmp_path / "out")


def test_they_are_not_distilled_again(checkpoints):
    from sfumato.train.distill.source import open_source

    with pytest.raises(
        InvalidRequest, match="is distilled to few steps already, and its UNet takes the guida"
    ):
        open_source(checkpoints("lcm"))
