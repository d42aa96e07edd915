"""Weights in 8 and 4 bits: exact bounds for matrices, and whole models that stay close to their originals."""

import json
from collections import Counter

import numpy as np
import openvino as ov
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import sfumato
import tiny
from sfumato import Pipeline
from sfumato.errors import CheckpointError, InvalidRequest
from sfumato.graphs.compress import GROUP, quantize_int8
from sfumato.graphs.four_bits import quantize_int4

matrices = st.builds(
    lambda seed, rows, groups, size, shift: (
        np.random.default_rng(seed).standard_normal((rows, groups * GROUP)) * size + shift
    ).astype(np.float32),
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 5),
    groups=st.integers(1, 3),
    size=st.sampled_from([0.0, 1e-6, 0.02, 1.0, 300.0]),
    shift=st.sampled_from([0.0, 0.05, -2.0]),
)


@given(matrices)
def test_int8_is_within_half_a_step(matrix):
    integers, scales = quantize_int8(matrix)
    wide = scales.astype(np.float32)
    # float16 scales are rounded themselves, by up to 2**-11, which counts 127 times at the largest value.
    assert (np.abs(integers * wide - matrix) <= wide * 0.57).all()


def grouped(matrix: np.ndarray) -> np.ndarray:
    return matrix.reshape(len(matrix), -1, GROUP)


@given(matrices)
def test_int4_is_within_a_step_and_zero_is_exact(matrix):
    integers, scales, zeros = quantize_int4(grouped(matrix))
    wide = scales.astype(np.float32)
    restored = ((integers.astype(np.float32) - zeros) * wide).reshape(matrix.shape)
    steps = np.repeat(wide, GROUP, axis=2).reshape(matrix.shape)
    assert (np.abs(restored - matrix) <= steps * 1.01).all()
    with_zero = np.concatenate([matrix[:, :-1], np.zeros((len(matrix), 1), np.float32)], axis=1)
    integers, _, zeros = quantize_int4(grouped(with_zero))
    assert (integers[:, -1, -1] == zeros[:, -1, 0]).all()


@pytest.fixture(scope="module")
def reference(artifacts):
    return {name: latents(Pipeline.load(artifacts(name), precision="f32")) for name in ("sdxl", "sd3")}


def latents(pipe: Pipeline) -> np.ndarray:
    settings = {"seed": 3, "steps": 2, "guidance": 4.0, "negative_prompt": "a house"}
    return pipe("a red apple", **settings, output_type="latent").images


def kinds(folder, component) -> Counter:
    model = ov.Core().read_model(folder / component / "openvino_model.xml")
    constants = (op for op in model.get_ops() if op.get_type_name() == "Constant")
    return Counter(op.get_output_element_type(0).get_type_name() for op in constants)


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
@pytest.mark.parametrize(("weights", "bound"), [("int8", 0.02), ("int4", 0.15), ("nf4", 0.15)])
def test_compressed_models_stay_close(name, weights, bound, checkpoints, tmp_path, reference):
    artifact = sfumato.convert(checkpoints(name), tmp_path / "out", weights=weights)
    assert artifact.manifest.precision == weights
    found = kinds(tmp_path / "out", artifact.family.denoiser)
    assert (found["i8"] > 2) == (weights != "nf4")
    assert (found["u4"] > 3) == (weights == "int4")
    assert (found["nf4"] > 1) == (weights == "nf4")
    assert kinds(tmp_path / "out", "vae_decoder")["i8"] == 0
    ours = latents(Pipeline.load(tmp_path / "out", precision="f32"))
    error = np.linalg.norm(ours - reference[name]) / np.linalg.norm(reference[name])
    assert 1e-5 < error < bound


def test_bfloat16_checkpoints_are_stored_as_float16(tmp_path, artifacts):
    folder = tiny.make("sd3-no-t5", tmp_path / "checkpoint", dtype=torch.bfloat16)
    rounded = tiny.make("sd3-no-t5", tmp_path / "rounded")
    for file in folder.rglob("*.safetensors"):
        wide = {name: value.float() for name, value in load_file(file).items()}
        save_file(wide, rounded / file.relative_to(folder), metadata={"format": "pt"})
    for source in (folder, rounded):
        sfumato.convert(source, tmp_path / f"{source.name}-out")
    assert kinds(tmp_path / "checkpoint-out", "transformer")["bf16"] == 0
    ours, same = (
        latents(Pipeline.load(tmp_path / f"{source.name}-out", precision="f32"))
        for source in (folder, rounded)
    )
    np.testing.assert_allclose(ours, same, rtol=1e-3, atol=1e-4)


def test_16bit_weights_are_stored_as_they_are(tmp_path):
    folder = tiny.make("sd", tmp_path / "checkpoint", dtype=torch.float16)
    for precision in ("fp16", "fp32"):
        sfumato.convert(folder, tmp_path / precision, precision=precision)
    ours, same = (latents(Pipeline.load(tmp_path / each, precision="f32")) for each in ("fp16", "fp32"))
    np.testing.assert_allclose(ours, same, rtol=1e-4, atol=1e-5)


def test_weights_and_precision_exclude_each_other(checkpoints, tmp_path):
    with pytest.raises(InvalidRequest, match="fp32 and weights int8"):
        sfumato.convert(checkpoints("sd"), tmp_path / "out", precision="fp32", weights="int8")
    with pytest.raises(InvalidRequest, match="'int3': must be fp16, fp32, int8, int4 or nf4"):
        sfumato.convert(checkpoints("sd"), tmp_path / "out", weights="int3")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value, tmp_path):
    folder = tiny.make("sd", tmp_path / "checkpoint")
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"][0, 0, 0, 0] = value
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unet: conv_in\.weight holds NaN or infinity"):
        sfumato.convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_overlapping_tensors_and_huge_headers_are_refused(tmp_path):
    folder = tiny.make("sd", tmp_path / "checkpoint")
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    for content in (
        len(header).to_bytes(8, "little") + header + bytes(16),
        (2 * 10**9).to_bytes(8, "little") + header,
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="cut short or damaged"):
            sfumato.convert(folder, tmp_path / "out")
