"""Options behind `torch:`: what is read, and what is refused before anything is loaded."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sfumato.compare.worker import short_name
from sfumato.errors import InvalidRequest
from sfumato.torch_backend.source import TorchSource, parse_source


def test_options_are_read():
    text = "sd35?quant=nf4&device=cuda:1&offload=model&dtype=fp16&compile=1&t5=0"
    expected = TorchSource("sd35", "nf4", "cuda:1", "model", "fp16", compile=True, t5=False)
    assert parse_source(text) == expected
    assert str(expected) == text
    assert parse_source("org/name") == TorchSource("org/name")
    assert str(TorchSource("org/name")) == "org/name"


def test_the_type_of_arithmetic_follows_the_device():
    assert parse_source("x").dtype_on("cpu") == "fp32"
    assert parse_source("x?device=auto").dtype_on("cuda") == "bf16"
    assert parse_source("x?dtype=fp16").dtype_on("cpu") == "fp16"


def test_a_folder_with_a_question_mark_is_a_folder(tmp_path):
    folder = tmp_path / "what?quant=nf4"
    folder.mkdir()
    assert parse_source(str(folder)) == TorchSource(str(folder))
    assert parse_source(f"{folder}?quant=int8") == TorchSource(str(folder), "int8")


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("quantize=nf4", "option 'quantize': unknown; did you mean 'quant'[?] known are"),
        ("quant=nf5", "quant=nf5: unknown; did you mean 'nf4'[?] known are none, nf4, int8, int4, fp8"),
        ("quant", "quant=: unknown"),
        ("", "option ''"),
        ("quant=nf4&", "option ''"),
        ("quant=nf4&quant=int8", "twice"),
        ("device=gpu", "known are cpu, cuda, cuda:N, auto"),
        ("device=cuda:N", "device=cuda:N: unknown"),
        ("compile=yes", "known are 0, 1"),
        ("offload=model", "offload=model: spares the memory of a GPU; add device=cuda"),
        ("quant=fp8", "no kernels for processors; add device=cuda, give quant=int8 or nf4"),
        ("quant=int4", "no kernels for processors.*sfumato optimize"),
        ("quant=int4&device=cuda&dtype=fp32", "its kernels compute in bf16"),
        ("offload=sequential&device=cuda&quant=nf4", "give offload=model"),
        ("offload=sequential&device=auto&compile=1", "give offload=model"),
    ],
)
def test_what_cannot_be_is_refused(query, says):
    with pytest.raises(InvalidRequest, match=says) as caught:
        parse_source(f"sd35?{query}")
    assert str(caught.value).startswith(f"torch:sd35?{query}: ")
    assert "\n" not in str(caught.value)


def test_objects_are_checked_as_texts_are():
    with pytest.raises(InvalidRequest, match="quant=q4"):
        TorchSource("x", "q4")
    with pytest.raises(InvalidRequest, match="offload=model"):
        TorchSource("x", offload="model")


def test_tables_name_the_options():
    assert short_name("torch:models/sd35?quant=nf4&device=cuda") == "sd35 (torch nf4 cuda)"
    assert short_name("torch:models/sd35/?t5=0&compile=1") == "sd35 (torch compiled without T5)"
    with pytest.raises(InvalidRequest, match="nf5"):
        short_name("torch:models/sd35?quant=nf5")


def test_reading_takes_no_pytorch():
    code = (
        "import sys, sfumato.torch_backend as t; t.parse_source('x?quant=nf4'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_libraries_find_no_way_to_fetch_code():
    code = "import sfumato.torch_backend, importlib.util as u; print(u.find_spec('kernels')); import kernels"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "None\n"
    assert "import of kernels halted" in done.stderr


@pytest.fixture
def pipeline() -> Callable[..., object]:
    from sfumato.torch_backend import TorchPipeline

    return TorchPipeline.load


def test_no_gpu_is_said(pipeline, checkpoints, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder: Path = checkpoints("sd")
    with pytest.raises(InvalidRequest, match=r"device=cuda: PyTorch .*leave it out"):
        pipeline(f"{folder}?device=cuda")
    for options in ("offload=model", "quant=fp8"):
        with pytest.raises(InvalidRequest, match="add device=cuda"):
            pipeline(f"{folder}?device=auto&{options}")


def test_gpus_that_are_not_there_and_too_old_ones_are_said(pipeline, checkpoints, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "RTX A4000")
    monkeypatch.setitem(sys.modules, "torchao", torch)
    with pytest.raises(InvalidRequest, match="the last GPU here is cuda:1"):
        pipeline(f"{checkpoints('sd')}?device=cuda:2")
    with pytest.raises(InvalidRequest, match=r"8\.9 or more, and RTX A4000 has 8\.6; give quant=int8"):
        pipeline(f"{checkpoints('sd')}?device=cuda&quant=fp8")
