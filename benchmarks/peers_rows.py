"""The rows of `peers.py`: every way of running a model, with its best settings, and what each one needs."""

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BASELINE = "diffusers float32"
CPP = "CMAKE_ARGS=-DGGML_NATIVE=ON pip install stable-diffusion-cpp-python"
SD1, SDXL, SD3 = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"


@dataclass(frozen=True)
class Needs:
    """The modules that an engine imports, and the command that installs them."""

    modules: tuple[str, ...]
    install: str


NEEDS = {
    "sfumato": Needs(("sfumato",), "pip install sfumato"),
    "diffusers": Needs(
        ("torch", "diffusers", "transformers"), "pip install torch diffusers transformers accelerate"
    ),
    "genai": Needs(("openvino_genai",), "pip install openvino-genai"),
    "cpp": Needs(("stable_diffusion_cpp",), CPP),
    "onnx": Needs(
        ("onnxruntime", "onnx", "onnxscript", "transformers"),
        "pip install onnxruntime onnx onnxscript transformers",
    ),
}


@dataclass(frozen=True)
class Row:
    """One way of running a model.

    source: "checkpoint", a name of MAKING, or a folder. settings: what the options come to, for readers.
    whole: its steps differ, so a picture of few says nothing of one of many; all steps are run.
    pipelines: the classes of diffusers whose models it runs; all by default.
    """

    name: str
    engine: str
    source: str
    settings: str
    options: dict[str, Any] = field(default_factory=dict)
    whole: bool = False
    pipelines: tuple[str, ...] = (SD1, SDXL, SD3)

    def reason_against(self, pipeline: str) -> str | None:
        """Why this machine cannot measure it on a model of this class; None where it can."""
        if pipeline not in self.pipelines:
            return f"not measured: runs no {pipeline} here, only {', '.join(self.pipelines)}"
        needs = NEEDS[self.engine]
        if all(map(importlib.util.find_spec, needs.modules)):
            return None
        return f"not installed: {needs.install}"


def _torch(name: str, settings: str, **options: Any) -> Row:
    return Row(name, "diffusers", "checkpoint", settings, options)


def _genai(name: str, source: str, settings: str = "compiled for the size, LATENCY") -> Row:
    return Row(name, "genai", source, settings)


def _cpp(name: str, settings: str, *, whole: bool = False, flash: bool = True, **options: Any) -> Row:
    options |= {"diffusion_flash_attn": flash, "diffusion_conv_direct": False, "vae_conv_direct": False}
    settings = f"{'flash' if flash else 'plain'} attention, {settings}"
    return Row(name, "cpp", "checkpoint", settings, options, whole, pipelines=(SD1, SDXL))


def _ours(name: str, *, whole: bool = False, reuse: str = "off", **options: Any) -> Row:
    options = {"reuse": reuse} | options
    settings = ", ".join(f"{key} {value}" for key, value in options.items())
    return Row(name, "sfumato", "int8", settings, options, whole)


ROWS: tuple[Row, ...] = (
    _torch(BASELINE, "eager", dtype="float32"),
    _torch("diffusers bf16", "eager, channels last", dtype="bfloat16", channels_last=True),
    _torch(
        "diffusers bf16 compiled",
        "torch.compile with frozen weights, channels last",
        dtype="bfloat16",
        channels_last=True,
        compiled=True,
    ),
    _genai("OpenVINO GenAI 16 bits", "fp16"),
    _genai("OpenVINO GenAI hybrid INT8", "hybrid", "as Optimum makes it; compiled for the size, LATENCY"),
    _genai("OpenVINO GenAI INT8", "int8", "W8A8 of Sfumato; compiled for the size, LATENCY"),
    Row(
        "OpenVINO GenAI TaylorSeer",
        "genai",
        "fp16",
        "16 bits, its cache with its defaults; compiled for the size, LATENCY",
        {"taylorseer": True},
        whole=True,
        pipelines=(SD3,),
    ),
    _cpp("stable-diffusion.cpp f16", "f16", wtype="f16"),
    _cpp("stable-diffusion.cpp q8_0", "q8_0", wtype="q8_0"),
    _cpp("stable-diffusion.cpp q8_0 plain", "q8_0", flash=False, wtype="q8_0"),
    _cpp(
        "stable-diffusion.cpp q8_0 cached", "q8_0, spectrum", whole=True, wtype="q8_0", cache_mode="spectrum"
    ),
    Row("ONNX Runtime float32", "onnx", "onnx", "all graph optimizations", pipelines=(SD1,)),
    _ours("Sfumato INT8"),
    _ours("Sfumato INT8 merging 0.5", token_merging=0.5),
    _ours("Sfumato balanced", whole=True, reuse="balanced", guidance_every=2),
    _ours("Sfumato fast", whole=True, reuse="fast", guidance_every=2),
)


def ours(text: str) -> Row:
    """A row of `NAME=FOLDER?reuse=fast&token_merging=0.5`, whose pictures run all their steps.

    Raises ValueError for another form.
    """
    name, separator, place = text.partition("=")
    folder, _, query = place.partition("?")
    if not (name and separator and folder):
        raise ValueError(f"{text!r}: give NAME=FOLDER, or NAME=FOLDER?OPTION=VALUE&OPTION=VALUE")
    options = {}
    for entry in query.split("&") if query else ():
        key, separator, value = entry.partition("=")
        if not separator:
            raise ValueError(f"{entry!r} in {text!r}: give OPTION=VALUE")
        options[key] = _value(value)
    return Row(name, "sfumato", folder, query.replace("&", ", ").replace("=", " "), options, whole=True)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _sfumato(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sfumato", *arguments]


def _optimized(work: Path, recipe: str, samples: int | None) -> list[str]:
    few = [] if samples is None else ["--samples", str(samples)]
    return _sfumato("optimize", str(work / "fp16"), str(work / recipe), "--recipe", recipe, *few)


@dataclass(frozen=True)
class Work:
    """Where models for the rows are, or are to be made. size: width and height in pixels."""

    checkpoint: Path
    folder: Path
    size: tuple[int, int]
    samples: int | None

    def path(self, source: str) -> Path:
        """Where a row's source is."""
        if source == "checkpoint":
            return self.checkpoint
        if source not in MAKING:
            return Path(source)
        return self.folder / (f"onnx-{self.size_text}" if source == "onnx" else source)

    @property
    def size_text(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"

    def missing(self, sources: set[str]) -> list[str]:
        """Those of MAKING that the rows need and that are not there, in the order in which they are made."""
        needed = sources | ({"fp16"} if sources & {"int8", "hybrid"} else set())
        absent = [source for source in MAKING if source in needed and not self.path(source).exists()]
        if "fp16" in absent and "fp16" not in sources and not {"int8", "hybrid"} & set(absent):
            absent.remove("fp16")
        return absent


def _exported(work: Work) -> list[str]:
    script = str(Path(__file__).with_name("peers_onnx.py"))
    checkpoint, out = str(work.checkpoint), str(work.path("onnx"))
    return [sys.executable, script, checkpoint, out, "--size", work.size_text]


MAKING: dict[str, Callable[[Work], list[str]]] = {
    "fp16": lambda work: _sfumato("convert", str(work.checkpoint), str(work.path("fp16"))),
    "int8": lambda work: _optimized(work.folder, "int8", work.samples),
    "hybrid": lambda work: _optimized(work.folder, "hybrid", work.samples),
    "onnx": _exported,
}
"""The commands that make what rows need, in order."""
