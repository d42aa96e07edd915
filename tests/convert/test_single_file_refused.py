"""Single files that cannot be used, and what is missing beside them: one sentence with the way out each."""

from pathlib import Path

import originals
import pytest
import torch

from sfumato.convert.single_file.opening import read_model
from sfumato.convert.weights import load_module
from sfumato.errors import CheckpointError, InvalidRequest, SfumatoError

DENOISER = "model.diffusion_model."
UNET = originals.prefixed(DENOISER, originals.unet(32, (1, 2), (1, 0), 64, linear=False, layers=1))
UNET2 = originals.prefixed(DENOISER, originals.unet(64, (1, 1, 1, 1), (1, 1, 1, 0), 64, linear=True))
VAE = originals.prefixed("first_stage_model.", originals.vae(32, (1, 1), 4, layers=1))
CLIP = originals.clip(64, 1, vocabulary=100, tokens=16)
SD = UNET | VAE | originals.prefixed("cond_stage_model.transformer.", CLIP)
SD2 = UNET2 | VAE
SD2 |= originals.prefixed("cond_stage_model.model.", originals.open_clip(64, 2, vocabulary=100, tokens=16))
MMDIT = originals.prefixed(DENOISER, originals.mmdit(2, 1, 8, context=96, pooled=896))
TELLING = f"{DENOISER}output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.fixture
def hollow(tmp_path):
    """Writes a file of these shapes."""

    def write(shapes: originals.Shapes, name: str = "model", dtype: str = "F16", **metadata: str) -> Path:
        return originals.write_hollow(tmp_path / f"{name}.safetensors", shapes, dtype, **metadata)

    return write


def refused(file: Path, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_model(file, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_damaged_files(hollow, tmp_path):
    file = hollow(SD)
    data = file.read_bytes()
    for length in (len(data) - 1, len(data) // 2, 4, 0):
        file.write_bytes(data[:length])
        assert "cut short or damaged" in refused(file)
    assert "no such file" in refused(tmp_path / "none.safetensors")
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(b"pickle")
    assert "never loaded" in refused(pickle)
    assert "never loaded" in refused(hollow(SD), vae=pickle)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "a LoRA, which --lora adds"),
        ("transformer_blocks.0.attn.to_q.lora_A.weight", "a LoRA, which --lora adds"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("down_blocks.0.resnets.0.conv1.weight", "give the whole folder"),
        ("decoder.mid.block_1.conv1.weight", "only an autoencoder, to be given with --vae"),
        (
            "encoder.block.0.layer.0.SelfAttention.q.weight",
            "only a text encoder, to be given with --text-enc",
        ),
        ("some.other.weight", r"looked for a UNet (input_blocks) or an MMDiT (joint_blocks)"),
    ],
)
def test_other_layouts_are_named(name, message, hollow):
    text = refused(hollow({name: (4, 4)}))
    assert message in text
    assert name in text or "only" in text


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("noise_augmentor.data_mean", "an unCLIP model"),
        (f"{DENOISER}input_blocks.1.1.time_stack.0.norm1.weight", "a video model"),
        (f"{DENOISER}time_embedding.cond_proj.weight", "read from a diffusers folder only"),
        ("edm_mean", "EDM's space"),
    ],
)
def test_relatives_that_work_differently(extra, message, hollow):
    assert message in refused(hollow(SD | {extra: (4,)}))


@pytest.mark.parametrize(
    "extra", ["scaled_fp8", "input_blocks.1.0.in_layers.2.scale_weight", "out.2.weight.absmax"]
)
def test_packed_weights(extra, hollow):
    message = refused(hollow(SD | {f"{DENOISER}{extra}": (1,)}))
    assert "packed in few bits" in message
    assert "get the file in fp16 or bf16" in message


def test_packed_weights_that_are_not_used_do_not_matter(hollow):
    encoders = originals.prefixed("text_encoders.clip_l.transformer.", originals.clip(768, 1, vocabulary=100))
    encoders |= originals.prefixed("text_encoders.clip_g.transformer.", originals.clip(128, 1, project=True))
    t5 = originals.t5(96, 1, 2, inner=32, vocabulary=100) | {"scaled_fp8": (2,)}
    encoders |= originals.prefixed("text_encoders.t5xxl.transformer.", t5)
    vae = originals.prefixed("first_stage_model.", originals.vae(32, (1, 1), 16, quant=False, layers=1))
    file = hollow(MMDIT | vae | encoders)
    assert "text_encoders.t5xxl.transformer.scaled_fp8" in refused(file)
    assert "text_encoder_3" not in read_model(file, without_t5=True).parts


def test_missing_parts_say_how_to_give_them(hollow):
    vae = hollow(VAE, "vae")
    clip = originals.prefixed("cond_stage_model.transformer.", CLIP)
    message = refused(hollow(UNET | clip))
    assert "has no autoencoder" in message
    assert "--vae" in message
    message = refused(hollow(UNET | VAE))
    assert "has no text_encoder (CLIP-L, 64 wide)" in message
    assert "--text-encoder" in message
    assert "clip_l.safetensors" in message
    assert "has no autoencoder" in refused(hollow(UNET | clip, "model"), vae=hollow(clip, "clip"))
    message = refused(hollow(MMDIT), vae=vae)
    assert "has no text_encoder (CLIP-L, 768 wide)" in message
    given = [hollow(originals.clip(768, 1), "clip_l"), hollow(originals.clip(128, 1), "clip_g")]
    assert "has no text_encoder_2 (OpenCLIP-bigG, 128 wide)" in refused(
        hollow(MMDIT), text_encoders=given[:1]
    )
    message = refused(hollow(MMDIT), text_encoders=given)
    assert "t5xxl_fp16.safetensors" in message
    assert "--without-t5" in message


def test_parts_of_other_models(hollow):
    sd3_vae = hollow(originals.vae(32, (1, 1), 16, quant=False, layers=1), "vae")
    message = refused(hollow(SD), vae=sd3_vae)
    assert "latents have 16 channels, and Stable Diffusion 1 needs 4" in message
    message = refused(hollow(SD), text_encoders=[hollow(originals.clip(128, 1), "clip")])
    assert "found one 128 wide" in message
    assert "CLIP-L, 64 wide" in message
    assert "found none" in refused(hollow(SD), text_encoders=[sd3_vae])


def test_folders_that_are_no_component(hollow, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "neither a safetensors file nor a diffusers folder's vae" in refused(hollow(SD), vae=empty)
    (empty / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    assert "'AutoencoderTiny'" in refused(hollow(SD), vae=empty)


def test_wrong_and_missing_tensors(hollow):
    name = f"{DENOISER}input_blocks.1.0.out_layers.3.weight"

    def complaint(shapes: originals.Shapes) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_module(read_model(hollow(shapes, dtype="F32")).parts["unet"])
        return str(caught.value)

    assert "another shape than its configuration says: down_blocks.0.resnets.0.conv2" in complaint(
        SD | {name: (32, 16, 3, 3)}
    )
    assert "missing: down_blocks.0.resnets.0.conv2" in complaint({k: v for k, v in SD.items() if k != name})
    assert "not known to its configuration: strange.weight" in complaint(
        SD | {f"{DENOISER}strange.weight": (1,)}
    )
    first = f"{DENOISER}out.2.weight"
    assert f"{first} is missing" in refused(hollow({k: v for k, v in SD.items() if k != first}))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("input_blocks.0.0.weight", ()),
        ("input_blocks.0.0.weight", (0, 4, 3, 3)),
        ("input_blocks.1.0.in_layers.2.weight", (33, 32, 3, 3)),
        ("time_embed.0.weight", (0,)),
    ],
)
def test_absurd_shapes(name, shape, hollow):
    file = hollow(SD | {f"{DENOISER}{name}": shape})
    with pytest.raises(CheckpointError) as caught:
        load_module(read_model(file).parts["unet"])
    assert "\n" not in str(caught.value)


def test_absurd_numbers(hollow):
    far = originals.prefixed(f"{DENOISER}joint_blocks.999999999999.x_block.", originals.norm("attn.qkv", 4))
    given = [hollow(originals.clip(768, 1), "clip_l"), hollow(originals.clip(128, 1), "clip_g")]
    vae = hollow(originals.vae(32, (1, 1), 16, quant=False, layers=1), "vae")
    model = read_model(hollow(MMDIT | far), vae=vae, text_encoders=given, without_t5=True)
    with pytest.raises(CheckpointError, match="not known"):
        load_module(model.parts["transformer"])


def test_other_inputs_than_latents(hollow):
    unet = originals.unet(32, (1, 2), (1, 0), 64, linear=False, layers=1, inputs=8)
    message = refused(hollow(SD | originals.prefixed(DENOISER, unet)))
    assert "takes 8 channels and predicts 4" in message


@pytest.mark.parametrize(
    ("metadata", "given", "expected"),
    [
        ({}, "epsilon", "epsilon"),
        ({"modelspec.prediction_type": "v"}, "epsilon", "epsilon"),
        ({"modelspec.prediction_type": "epsilon"}, None, "epsilon"),
        ({"modelspec.prediction_type": "v"}, None, "v_prediction"),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, None, "epsilon"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, None, "v_prediction"),
    ],
)
def test_what_stable_diffusion_2_predicts_as_stated(metadata, given, expected, hollow):
    model = read_model(hollow(SD2, **metadata), prediction=given)
    assert model.scheduler.get("prediction_type", "epsilon") == expected
    assert model.parts["unet"].config["sample_size"] == (96 if expected == "v_prediction" else 64)


@pytest.mark.parametrize(("spread", "expected"), [(0.2, "v_prediction"), (0.02, "epsilon")])
def test_what_stable_diffusion_2_predicts_by_its_weights(spread, expected, tmp_path):
    tensors = {name: torch.zeros(shape) for name, shape in SD2.items()}
    tensors[TELLING] = spread * torch.randn(tensors[TELLING].shape)
    model = read_model(originals.write(tmp_path / "model.safetensors", tensors))
    assert model.scheduler.get("prediction_type", "epsilon") == expected


def test_marks_of_v_prediction_in_other_models(hollow):
    model = read_model(hollow(SD | {"v_pred": (0,), "ztsnr": (0,)}))
    assert model.scheduler["_class_name"] == "DDIMScheduler"
    assert model.scheduler["prediction_type"] == "v_prediction"
    assert model.scheduler["rescale_betas_zero_snr"] is True
    assert "prediction_type" not in read_model(hollow(SD)).scheduler


def test_predictions_that_make_no_sense(hollow):
    with pytest.raises(InvalidRequest, match="must be one of epsilon, v_prediction"):
        read_model(hollow(SD), prediction="sample")
    with pytest.raises(SfumatoError, match="Stable Diffusion 3 predicts velocities"):
        read_model(hollow(MMDIT), prediction="epsilon")
