"""What `torch:SOURCE?quant=nf4&device=cuda` says; reading it takes no PyTorch."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidRequest

CHOICES = {
    "quant": ("none", "nf4", "int8", "int4", "fp8"),
    "device": ("cpu", "cuda", "cuda:N", "auto"),
    "offload": ("none", "model", "sequential"),
    "dtype": ("fp32", "bf16", "fp16"),
    "compile": ("0", "1"),
    "t5": ("1", "0"),
}
"""The options and what each can be."""
SWITCHES = ("compile", "t5")
GPU_ONLY = {"int4": "int8 or nf4", "fp8": "int8 or nf4"}
"""Quantizations without kernels for processors, and what to take there instead."""


@dataclass(frozen=True)
class TorchSource:
    """A checkpoint, and how PyTorch is to run it. Raises InvalidRequest for what does not go together.

    place: a diffusers folder, or a model on the Hub as `org/name`.
    quant: of the denoiser's linear layers: "none", "nf4" (bitsandbytes; of the T5 too), "int8" and "int4"
        (weights alone) or "fp8" (weights and activations), these three by torchao.
    device: "cpu", "cuda", "cuda:1", or "auto" for a GPU where there is one.
    offload: what waits in the processor's memory until the GPU needs it: "none", "model" (a network at a
        time), or "sequential" (a layer at a time).
    dtype: of arithmetic and unquantized weights, "fp32", "bf16" or "fp16"; None is fp32 on a processor and
        bf16 on a GPU.
    compile: compile the denoiser's blocks, which the first picture waits for. t5: keep the T5, if any.
    """

    place: str
    quant: str = "none"
    device: str = "cpu"
    offload: str = "none"
    dtype: str | None = None
    compile: bool = False
    t5: bool = True

    def __post_init__(self) -> None:
        for name in ("quant", "device", "offload", "dtype"):
            value = getattr(self, name)
            if value is not None and not _known(name, value):
                raise InvalidRequest(f"{name}={value}: {_did_you_mean(value, CHOICES[name])}")
        if self.device == "cpu":
            self.check_on_cpu()
        if self.quant in GPU_ONLY and self.dtype not in (None, "bf16"):
            raise InvalidRequest(
                f"quant={self.quant}&dtype={self.dtype}: its kernels compute in bf16; leave dtype out"
            )
        if self.offload == "sequential" and (self.quant != "none" or self.compile):
            what = f"quant={self.quant}" if self.quant != "none" else "compile=1"
            raise InvalidRequest(
                f"offload=sequential&{what}: single layers on the move cannot be quantized or compiled; "
                "give offload=model"
            )

    def check_on_cpu(self) -> None:
        """Raise InvalidRequest for options that need a GPU."""
        if self.offload != "none":
            raise InvalidRequest(
                f"offload={self.offload}: spares the memory of a GPU; add device=cuda, or leave it out"
            )
        if self.quant in GPU_ONLY:
            raise InvalidRequest(
                f"quant={self.quant}: has no kernels for processors; add device=cuda, give "
                f"quant={GPU_ONLY[self.quant]}, or convert the checkpoint and run `sfumato optimize` on it"
            )

    def dtype_on(self, device: str) -> str:
        """The type of arithmetic on a device of this type, "cpu" or "cuda"."""
        return self.dtype or ("fp32" if device == "cpu" else "bf16")

    @property
    def options(self) -> dict[str, str]:
        """What differs from the defaults, as it is written."""
        found = {"quant": self.quant, "device": self.device, "offload": self.offload}
        found |= {"dtype": self.dtype or "", "compile": str(int(self.compile)), "t5": str(int(self.t5))}
        plain = {"quant": "none", "device": "cpu", "offload": "none", "dtype": "", "compile": "0", "t5": "1"}
        return {name: value for name, value in found.items() if value != plain[name]}

    @property
    def label(self) -> str:
        """How it is run, for a table: "torch", "torch nf4 cuda", "torch without T5"."""
        words = {"offload": f"offload {self.offload}", "compile": "compiled", "t5": "without T5"}
        return " ".join(["torch", *(words.get(name, value) for name, value in self.options.items())])

    def __str__(self) -> str:
        query = "&".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.place}?{query}" if query else self.place


def parse_source(text: str) -> TorchSource:
    """Read what follows `torch:`; a file or folder that exists as written is one without options.

    Raises InvalidRequest for an unknown option, a bad value, and options that do not go together.
    """
    place, mark, query = text.rpartition("?")
    if not mark or Path(text).exists():
        return TorchSource(text)
    options: dict[str, str] = {}
    try:
        for entry in query.split("&"):
            name, _, value = entry.partition("=")
            if name not in CHOICES:
                raise InvalidRequest(f"option {name!r}: {_did_you_mean(name, CHOICES)}")
            if name in options:
                raise InvalidRequest(f"option {name!r} is given twice; give it once")
            if not _known(name, value):
                raise InvalidRequest(f"{name}={value}: {_did_you_mean(value, CHOICES[name])}")
            options[name] = value
        switches = {name: options.pop(name) == "1" for name in SWITCHES if name in options}
        return TorchSource(place, **options, **switches)  # type: ignore[arg-type]
    except InvalidRequest as error:
        raise InvalidRequest(f"torch:{text}: {error}") from None


def _known(name: str, value: str) -> bool:
    if name == "device" and re.fullmatch("cuda:[0-9]{1,3}", value):
        return True
    return value in CHOICES[name] and value != "cuda:N"


def _did_you_mean(value: str, known: Iterable[str]) -> str:
    """`unknown; did you mean 'quant'? Known are ...`."""
    nearest = difflib.get_close_matches(value, list(known), n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"unknown; {hint}known are {', '.join(known)}"
