"""What a conversion leaves on disk: complete or nothing, the same bytes each time."""

import json
import shutil
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from transformers import CLIPTokenizer

import sfumato
import tiny
from sfumato.artifact import load_artifact, verify
from sfumato.convert.defaults import takes_mask
from sfumato.errors import CheckpointError, InvalidRequest, SfumatoError

NAMES = {
    "sd": {"unet": ({"sample", "timestep", "encoder_hidden_states"}, {"out_sample"})},
    "sdxl": {
        "unet": ({"sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"}, {"out_sample"}),
        "text_encoder": (
            {"input_ids"},
            {"last_hidden_state", "pooler_output", *(f"hidden_states.{i}" for i in range(4))},
        ),
        "text_encoder_2": (
            {"input_ids"},
            {"text_embeds", "last_hidden_state", *(f"hidden_states.{i}" for i in range(4))},
        ),
        "vae_encoder": ({"sample"}, {"latent_parameters"}),
        "vae_decoder": ({"latent_sample"}, {"sample"}),
    },
    "sd3": {
        "transformer": (
            {"hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"},
            {"out_sample"},
        ),
        "text_encoder_3": ({"input_ids"}, {"last_hidden_state"}),
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_tensor_names_and_dynamic_shapes(name, artifacts):
    for component, (inputs, outputs) in NAMES[name].items():
        model = ov.Core().read_model(artifacts(name) / component / "openvino_model.xml")
        assert {port.any_name for port in model.inputs} == inputs
        assert {port.any_name for port in model.outputs} == outputs
        for port in model.inputs:
            assert port.partial_shape[0].is_dynamic
            if port.partial_shape.rank.get_length() == 4:
                assert port.partial_shape[1].is_static
                assert port.partial_shape[2].is_dynamic
                assert port.partial_shape[3].is_dynamic


def test_timesteps_are_float_for_the_mmdit(artifacts):
    model = ov.Core().read_model(artifacts("sd3") / "transformer/openvino_model.xml")
    assert model.input("timestep").element_type == ov.Type.f32


def test_same_input_same_bytes(checkpoints, artifacts, tmp_path):
    again = sfumato.convert(checkpoints("sd3"), tmp_path / "sd3", precision="fp32").manifest
    assert again == load_artifact(artifacts("sd3")).manifest
    verify(tmp_path / "sd3")


def test_sixteen_bit_checkpoints_and_precisions(artifacts, tmp_path):
    """fp16 halves the weights, and a 16-bit checkpoint gives the weights that its 32-bit twin gives."""
    half = tiny.make("sd3", tmp_path / "checkpoint", dtype=torch.float16)
    small = sfumato.convert(half, tmp_path / "fp16", precision="fp16").path / "transformer/openvino_model.xml"
    large = artifacts("sd3") / "transformer/openvino_model.xml"
    sizes = [path.with_suffix(".bin").stat().st_size for path in (small, large)]
    assert 0.45 < sizes[0] / sizes[1] < 0.6
    rng = np.random.default_rng(0)
    inputs = {
        "hidden_states": rng.standard_normal((1, 16, 8, 8), np.float32),
        "encoder_hidden_states": rng.standard_normal((1, 40, 96), np.float32),
        "pooled_projections": rng.standard_normal((1, 80), np.float32),
        "timestep": np.array([500.25], np.float32),
    }
    core = ov.Core()
    outputs = [
        core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)[0]
        for path in (small, large)
    ]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=0.02)


def test_without_t5(checkpoints, tmp_path):
    artifact = sfumato.convert(checkpoints("sd3"), tmp_path / "small", without_t5=True)
    assert "text_encoder_3" not in artifact.manifest.components
    # As many zeros as there would be T5 tokens: their number changes the picture.
    assert artifact.manifest.conditioning.t5_tokens == tiny.T5_TOKENS
    index = json.loads((tmp_path / "small/model_index.json").read_text())
    assert index["text_encoder_3"] == index["tokenizer_3"] == [None, None]
    assert not (tmp_path / "small/tokenizer_3").exists()


def test_manifest_defaults(artifacts):
    sd, xl, sd3 = (load_artifact(artifacts(name)).manifest for name in ("sd-v", "sdxl", "sd3"))
    assert (sd.sampling.sampler, sd.sampling.prediction, sd.sampling.guidance) == (
        "ddim",
        "v_prediction",
        7.5,
    )
    assert (xl.sampling.sampler, xl.conditioning.zero_empty_negative) == ("euler", True)
    assert (sd3.sampling.sampler, sd3.sampling.prediction) == ("flow-euler", "flow")
    assert (sd3.conditioning.t5_tokens, sd3.conditioning.joint_attention_dim) == (tiny.T5_TOKENS, 96)
    assert (sd3.latents.scale, sd3.latents.shift, sd3.latents.size_multiple) == (1.5305, 0.0609, 16)
    assert sd3.latents.default_size == (64, 64)
    assert sd3.latents.largest_side == 192
    assert sd3.components["text_encoder"].hidden_states == 4


def test_vocabulary_files_alone_are_enough(checkpoints, artifacts, tmp_path):
    """Most published checkpoints have vocab.json and merges.txt but no tokenizer.json."""
    from sfumato.convert.tokenizers import export_tokenizer, load_tokenizer

    source = tmp_path / "source"
    source.mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(artifacts("sd") / "tokenizer" / name, source)
    export_tokenizer(load_tokenizer(source, "CLIPTokenizer"), source, tmp_path / "out", tiny.CLIP_TOKENS)
    text = "A smiling face, of noto!"
    theirs = CLIPTokenizer.from_pretrained(checkpoints("sd") / "tokenizer")(text).input_ids
    assert CLIPTokenizer.from_pretrained(tmp_path / "out")(text).input_ids == theirs
    assert (tmp_path / "out/openvino_tokenizer.xml").is_file()


def test_t5_length_in_the_index_wins(checkpoints, tmp_path):
    from sfumato.convert.defaults import conditioning

    denoiser = {"joint_attention_dim": 96}
    assert conditioning({}, denoiser, 24).t5_tokens == 24
    assert conditioning({}, denoiser, 512).t5_tokens == 256
    assert conditioning({"t5_tokens": 77}, denoiser, 512).t5_tokens == 77
    with pytest.raises(CheckpointError, match="t5_tokens"):
        conditioning({"t5_tokens": 0}, denoiser, 512)


class Interrupted(BaseException):
    """As Ctrl-C: nothing in between may swallow it."""


def test_interrupted_conversion_leaves_nothing(checkpoints, tmp_path):
    def interrupt(text: str, done: int, total: int) -> None:
        if "vae_decoder" in text:
            raise Interrupted

    out = tmp_path / "models" / "sd"
    with pytest.raises(Interrupted):
        sfumato.convert(checkpoints("sd"), out, on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    sfumato.convert(checkpoints("sd"), out)
    verify(out)


def test_stages_count_up_to_their_number(checkpoints, tmp_path):
    told: list[tuple[str, int, int]] = []
    sfumato.convert(checkpoints("sd3"), tmp_path / "out", on_progress=lambda *stage: told.append(stage))
    assert [done for _, done, _ in told] == list(range(len(told)))
    assert {total for *_, total in told} == {len(told)}
    assert ("converting transformer", told[-1][0]) == (told[-4][0], "hashing")


def test_disk_too_small_is_found_before_the_work(checkpoints, artifacts, tmp_path, monkeypatch):
    """The estimate is the weights alone: most of the folder (which holds equal constants once)."""
    asked: list[int] = []

    def full(target: Path, needed: int) -> None:
        asked.append(needed)
        raise SfumatoError("full")

    monkeypatch.setattr("sfumato.convert.run.check_space", full)
    with pytest.raises(SfumatoError, match="full"):
        sfumato.convert(checkpoints("sd3"), tmp_path / "out", precision="fp32")
    assert list(tmp_path.iterdir()) == []
    weights = sum(path.stat().st_size for path in artifacts("sd3").rglob("openvino_model.bin"))
    assert 0.8 * weights < asked[0] < 1.02 * weights


def test_outputs_that_cannot_be(checkpoints, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    with pytest.raises(InvalidRequest, match="exists already"):
        sfumato.convert(checkpoints("sd"), tmp_path / "full")
    with pytest.raises(InvalidRequest, match="fp8"):
        sfumato.convert(checkpoints("sd"), tmp_path / "new", precision="fp8")
    assert (tmp_path / "full/file").read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_unusable_scheduler_is_refused_before_the_work(checkpoints, tmp_path):
    source = shutil.copytree(checkpoints("sd"), tmp_path / "source")
    path = source / "scheduler/scheduler_config.json"
    said: list[str] = []
    for change in ({"_class_name": "RePaintScheduler"}, {"prediction_type": "sample"}):
        original = path.read_text()
        path.write_text(json.dumps({**json.loads(original), **change}))
        with pytest.raises(InvalidRequest, match=next(iter(change.values()))):
            sfumato.convert(source, tmp_path / "out", on_progress=lambda text, *_: said.append(text))
        path.write_text(original)
    assert said == []


def test_callable_whatever_was_imported_first():
    import sfumato.convert.lora

    assert callable(sfumato.convert)
    from sfumato.convert import convert

    assert convert is not sfumato.convert
    assert sfumato.convert.lora.__name__ == "sfumato.convert.lora"


def test_impossible_configuration_is_named(checkpoints, tmp_path):
    source = shutil.copytree(checkpoints("sd"), tmp_path / "source")
    config = json.loads((source / "vae/config.json").read_text())
    (source / "vae/config.json").write_text(json.dumps(config | {"latent_channels": 0}))
    with pytest.raises(CheckpointError, match="channels cannot be 0"):
        sfumato.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "inpainting", "aesthetic_score"), [("sd-inpaint", True, False), ("refiner", False, True)]
)
def test_what_takes_pictures_says_so(name, inpainting, aesthetic_score, artifacts):
    manifest = load_artifact(artifacts(name)).manifest
    assert manifest.inpainting is inpainting
    assert manifest.conditioning.aesthetic_score is aesthetic_score
    assert manifest.latents.channels == 4


def test_a_denoiser_with_other_inputs_is_refused():
    with pytest.raises(CheckpointError, match="takes 8 channels; supported are those of the 4 latents"):
        takes_mask({"in_channels": 8}, {"latent_channels": 4})


def test_token_merging_is_converted_and_recorded(checkpoints, artifacts, tmp_path):
    """The denoiser alone is another one; what merges no tokens says nothing of it."""
    merged = sfumato.convert(checkpoints("sd"), tmp_path / "merged", precision="fp32", token_merging=0.5)
    whole = load_artifact(artifacts("sd"))
    assert merged.manifest.token_merging is not None
    assert merged.manifest.token_merging.model_dump() == {"ratio": 0.5, "method": "match"}
    assert whole.manifest.token_merging is None
    changed = {
        name
        for name, info in whole.manifest.files.items()
        if merged.manifest.files[name].sha256 != info.sha256
    }
    assert changed == {"unet/openvino_model.xml", "unet/openvino_model.bin"}


def test_token_merging_that_makes_no_sense_is_refused_before_the_work(checkpoints, artifacts, tmp_path):
    for source, options, says in (
        (checkpoints("sd"), {"token_merging": 1.0}, "share of the tokens"),
        (checkpoints("sd"), {"token_merging": 0.5, "merging_method": "mean"}, "match or pool"),
        (artifacts("sd"), {"token_merging": 0.5}, "a converted model already"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            sfumato.convert(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
