"""Quantized denoisers: pictures near those in floating point, of fewer bytes; what is missing is said."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import tiny
from sfumato import Pipeline, convert
from sfumato.compare import psnr
from sfumato.errors import InvalidRequest, MissingDependency
from sfumato.torch_backend import TorchPipeline
from sfumato.torch_backend.quantize import PACKAGES, held_bytes, quantize

SETTINGS = {"seed": 7, "steps": 3, "guidance": 4.0, "size": (64, 64)}
PROMPT = "a smiling red apple"


def needs(quant: str) -> pytest.MarkDecorator:
    package = PACKAGES[quant]
    missing = find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: pip install 'sfumato[gpu]'")


ON_CPU = [pytest.param(quant, marks=needs(quant)) for quant in ("nf4", "int8")]


def picture(source: str) -> tuple[TorchPipeline, np.ndarray]:
    pipe = TorchPipeline.load(source)
    return pipe, np.asarray(pipe.generate(PROMPT, **SETTINGS)[0])


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
@pytest.mark.parametrize("quant", ON_CPU)
def test_fewer_bytes_and_nearly_the_same_picture(quant, name, checkpoints):
    plain, expected = picture(checkpoints(name))
    small, found = picture(f"{checkpoints(name)}?quant={quant}")
    assert small.model.precision == quant
    assert small.model.source.endswith(f"?quant={quant}")
    denoiser = "transformer" if name == "sd3" else "unet"
    assert small.model.components[denoiser] < plain.model.components[denoiser]
    assert 15 < psnr(expected, found) < 80
    assert np.array_equal(found, np.asarray(small.generate(PROMPT, **SETTINGS)[0]))


@needs("nf4")
def test_t5_is_quantized_too_but_for_what_stays_in_float(checkpoints):
    import torch

    pipe, _ = picture(f"{checkpoints('sd3')}?quant=nf4&dtype=bf16")
    layers = {type(each).__name__ for each in pipe._pipe.text_encoder_3.modules()}
    assert "Linear4bit" in layers
    kept = [each for name, each in pipe._pipe.text_encoder_3.named_modules() if name.endswith(".wo")]
    assert kept and all(type(each) is torch.nn.Linear for each in kept)
    half = held_bytes(TorchPipeline.load(f"{checkpoints('sd3')}?dtype=bf16")._pipe.text_encoder_3)
    assert 0.3 * half < pipe.model.components["text_encoder_3"] < 0.6 * half


@pytest.mark.parametrize(
    ("quant", "bits"),
    [pytest.param("nf4", 4.5, marks=needs("nf4")), pytest.param("int8", 8.0, marks=needs("int8"))],
)
@pytest.mark.parametrize("shape", [(256, 96), (240, 80)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_is_of_so_many_bits_and_near(dtype, shape, quant, bits):
    import torch

    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    model = torch.nn.Sequential(torch.nn.Linear(*shape, bias=False)).to(kind).eval()
    given = torch.randn(2, 5, shape[0], dtype=kind)
    with torch.no_grad():
        expected = model(given)
        assert quantize(model, quant, dtype=kind, device=torch.device("cpu")) == 1
        assert held_bytes(model) * 8 / (shape[0] * shape[1]) == pytest.approx(bits, rel=0.1)
        error = (model(given) - expected).float().norm() / expected.float().norm()
    assert error < (0.12 if quant == "nf4" else 0.01)


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_a_missing_package_is_said(quant, checkpoints, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[quant], None)
    with pytest.raises(MissingDependency, match=f"{PACKAGES[quant]}.*pip install 'sfumato\\[gpu\\]'"):
        TorchPipeline.load(f"{checkpoints('sd')}?quant={quant}")


def test_a_network_whose_layers_do_not_fit_is_refused():
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(48, 8))
    with pytest.raises(InvalidRequest, match=r"no layer.*multiples of 32"):
        quantize(model, "int4", dtype=torch.bfloat16, device=torch.device("cpu"))


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_sixteen_bit_arithmetic_begins_with_the_same_noise(dtype, checkpoints):
    _, expected = picture(checkpoints("sd3"))
    _, found = picture(f"{checkpoints('sd3')}?dtype={dtype}")
    assert 25 < psnr(expected, found) < 80


@pytest.mark.parametrize("stance", ["force_eager", pytest.param("default", marks=pytest.mark.slow)])
def test_compiled_blocks_draw_the_same(stance, checkpoints):
    import torch

    _, expected = picture(checkpoints("sd3"))
    with torch.compiler.set_stance(stance):
        pipe, found = picture(f"{checkpoints('sd3')}?compile=1")
    compiled = [each for each in pipe._pipe.transformer.modules() if each._compiled_call_impl]
    assert {type(each).__name__ for each in compiled} == {"JointTransformerBlock"}
    assert psnr(expected, found) > 50


def test_a_tied_table_counts_once():
    import torch

    model = torch.nn.ModuleDict({"one": torch.nn.Embedding(8, 4), "two": torch.nn.Embedding(8, 4)})
    model["two"].weight = model["one"].weight
    assert held_bytes(model) == 8 * 4 * 4


def test_t5_is_left_out_as_model_folders_leave_it_out(checkpoints, tmp_path):
    """The zeros in its place are as many as its tokenizer would read: attention sees them."""
    pipe, found = picture(f"{checkpoints('sd3')}?t5=0")
    assert pipe._pipe.text_encoder_3 is None
    assert "text_encoder_3" not in pipe.model.components
    convert(checkpoints("sd3"), tmp_path / "folder", precision="fp32", without_t5=True)
    expected = Pipeline.load(tmp_path / "folder", precision="f32")(PROMPT, **SETTINGS).images[0]
    assert psnr(np.asarray(expected), found) > 40


def test_no_t5_to_leave_out_is_said(checkpoints):
    with pytest.raises(InvalidRequest, match="have no T5; leave t5 out"):
        TorchPipeline.load(f"{checkpoints('sd')}?t5=0")


@pytest.fixture
def odd(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint in a folder whose name looks like options."""
    folder = tmp_path / "sd?quant=nf4"
    folder.symlink_to(checkpoints("sd"))
    return folder


def test_a_folder_whose_name_looks_like_options_is_loaded(odd):
    assert TorchPipeline.load(odd).model.precision == "fp32"


def test_all_families_have_blocks_to_compile(checkpoints):
    from sfumato.torch_backend.quantize import BLOCKS

    for name in tiny.NAMES:
        pipe = TorchPipeline.load(checkpoints(name))._pipe
        denoiser = getattr(pipe, "transformer", None) or pipe.unet
        assert any(type(each).__name__ in BLOCKS for each in denoiser.modules()), name
