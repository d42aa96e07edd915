"""Models that were converted already: copied and verified, or given the manifest that they lack."""

import json
import shutil

import fake_hub
import numpy as np
import pytest

from sfumato import Pipeline
from sfumato.artifact import verify
from sfumato.convert.adopt import adopt, is_converted
from sfumato.errors import ArtifactError, CheckpointError, InvalidRequest

SHARED = {"negative_prompt": "green house", "steps": 2, "guidance": 5.0, "size": (64, 64), "seed": 7}


@pytest.fixture
def foreign(artifacts, tmp_path):
    """`foreign(name)`: a model folder as optimum-intel leaves it: with its class name, without a manifest."""

    def make(name):
        folder = shutil.copytree(artifacts(name), tmp_path / "foreign")
        (folder / "sfumato.json").unlink()
        for file in folder.glob("tokenizer*/tokenizer.json"):
            if (file.parent / "merges.txt").is_file():
                file.unlink()  # optimum-intel leaves the older files
        edit(folder / "model_index.json", lambda index: {**index, "_class_name": f"OV{index['_class_name']}"})
        return folder

    return make


def edit(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def picture(folder):
    return np.asarray(Pipeline.load(folder, precision="f32")("a smiling red apple", **SHARED).images[0])


@pytest.mark.parametrize("name", ["sdxl", "sd3", "lcm", "lcm-xl"])
def test_the_same_picture_and_manifest(name, foreign, artifacts, tmp_path):
    folder = foreign(name)
    assert is_converted(folder)
    adopted = adopt(folder, tmp_path / "out", origin="org/name@0123").manifest
    verify(tmp_path / "out")
    original = Pipeline.load(artifacts(name)).artifact.manifest
    for field in ("family", "precision", "components", "latents", "sampling", "conditioning"):
        assert getattr(adopted, field) == getattr(original, field), field
    assert adopted.source["checkpoint"] == "org/name@0123"
    assert (picture(tmp_path / "out") == picture(artifacts(name))).all()


def test_without_t5(foreign, tmp_path):
    adopted = adopt(foreign("sd3"), tmp_path / "out", without_t5=True)
    assert "text_encoder_3" not in adopted.manifest.components
    assert not (tmp_path / "out" / "text_encoder_3").exists()
    assert picture(tmp_path / "out").shape == (64, 64, 3)


def test_our_own_are_copied_and_verified(artifacts, tmp_path):
    source = shutil.copytree(artifacts("sd3"), tmp_path / "source")
    assert is_converted(source)
    adopt(source, tmp_path / "out")
    assert fake_hub.files_of(tmp_path / "out") == fake_hub.files_of(source)
    with pytest.raises(InvalidRequest, match="converted with T5 already"):
        adopt(source, tmp_path / "other", without_t5=True)
    weights = source / "transformer" / "openvino_model.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(ArtifactError, match=r"transformer/openvino_model\.bin: changed"):
        adopt(source, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_networks_that_do_not_fit_are_refused(foreign, artifacts, tmp_path):
    folder = foreign("sdxl")
    edit(folder / "model_index.json", lambda index: {**index, "_class_name": "StableDiffusionPipeline"})
    with pytest.raises(CheckpointError, match=r"unet/openvino_model\.xml: .*\(text_embeds, time_ids\)"):
        adopt(folder, tmp_path / "out")
    edit(folder / "model_index.json", lambda index: {**index, "_class_name": "OVFluxPipeline"})
    with pytest.raises(CheckpointError, match="pipeline class 'FluxPipeline' is not supported"):
        adopt(folder, tmp_path / "out")


def test_networks_of_one_size_are_refused(foreign, tmp_path):
    import openvino

    folder = foreign("sd")
    xml = folder / "vae_decoder" / "openvino_model.xml"
    model = openvino.Core().read_model(xml)
    model.reshape([1, 4, 8, 8])
    openvino.save_model(model, tmp_path / "fixed.xml", compress_to_fp16=False)
    del model
    for suffix in (".xml", ".bin"):
        (tmp_path / f"fixed{suffix}").replace(xml.with_suffix(suffix))
    with pytest.raises(
        CheckpointError, match=r"made for one picture size only \(latent_sample is \[1,4,8,8\]\)"
    ):
        adopt(folder, tmp_path / "out")


def test_parts_that_are_missing_are_named(foreign, tmp_path):
    folder = foreign("sd")
    (folder / "unet" / "openvino_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"unet/openvino_model\.bin: missing"):
        adopt(folder, tmp_path / "out")
    (folder / "vae_decoder" / "openvino_model.xml").unlink()
    with pytest.raises(CheckpointError, match=r"vae_decoder/openvino_model\.xml is missing"):
        adopt(folder, tmp_path / "out")


def test_checkpoints_are_not_converted(checkpoints):
    assert not is_converted(checkpoints("sd"))
