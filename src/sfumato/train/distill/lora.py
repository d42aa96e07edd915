"""The LoRA (Hu et al. 2021, arXiv 2106.09685) that a distillation trains, and the files it ends in."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato.convert.lora import PEFT, SAMPLING
from sfumato.errors import InvalidRequest
from sfumato.files import atomic_file

# Luo et al. 2023 (LCM-LoRA) and Chadebec et al. 2024 (Flash Diffusion) adapt these, by the end of the name.
UNET = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "conv_shortcut",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
    "time_emb_proj",
)
MMDIT = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
    "proj",
    "proj_out",
    "linear",
    "linear_1",
    "linear_2",
)
TARGETS = {"unet": UNET, "transformer": MMDIT}


@dataclass(frozen=True)
class Sampling:
    """How the few-step model is sampled.

    scheduler: what changes in the checkpoint's scheduler_config, `_class_name` included.
    """

    scheduler: dict[str, Any]
    steps: int
    guidance: float

    def scheduler_from(self, scheduler: Any) -> Any:
        """diffusers' scheduler for the few-step model, from that of the checkpoint."""
        name = self.scheduler.get("_class_name", type(scheduler).__name__)
        return getattr(diffusers, name).from_config({**scheduler.config, **self.scheduler})


def add_lora(denoiser: Any, part: str, rank: int) -> None:
    """Give a frozen denoiser (`part`: unet or transformer) a LoRA, its only trainable parameters.

    Raises InvalidRequest for a rank below 1.
    """
    if rank < 1:
        raise InvalidRequest(f"rank {rank}: must be 1 or more; 32 and 64 are usual")
    denoiser.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS[part])))


def halve(denoiser: torch.nn.Module) -> None:
    """Keep frozen layers in bfloat16: autocast would cast them at every call (a quarter of its time)."""
    for module in denoiser.modules():
        frozen = not any(p.requires_grad for p in module.parameters())
        if frozen and isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.to(torch.bfloat16)


@contextmanager
def inference() -> Iterator[None]:
    """No gradients, and fused attention: without a backward pass the fastest on a CPU too (1.4 times)."""
    with torch.no_grad(), sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        yield


@contextmanager
def as_teacher(denoiser: Any) -> Iterator[None]:
    """The denoiser as it was, without LoRA; no gradients."""
    denoiser.disable_adapters()
    try:
        with inference():
            yield
    finally:
        denoiser.enable_adapters()


def save_lora(denoiser: Any, part: str, sampling: Sampling, folder: Path) -> None:
    """Write the LoRA in 16 bits, for diffusers and for PEFT.

    diffusers: `pytorch_lora_weights.safetensors`, loaded by `pipe.load_lora_weights(folder)`. PEFT:
    `adapter_model.safetensors` and `adapter_config.json`, loaded by `PeftModel.from_pretrained(pipe.PART,
    folder)`. Both tell `sfumato convert` how the model is sampled.
    """
    config = denoiser.peft_config["default"]
    weights = {
        name: value.to(torch.float16).contiguous()
        for name, value in get_peft_model_state_dict(denoiser).items()
    }
    settings = config.to_dict()
    settings["target_modules"] = sorted(settings["target_modules"])
    told = {"format": "pt", SAMPLING: json.dumps(asdict(sampling))}
    stored = {f"{part}.{key}": value for key, value in settings.items()}
    diffusers_metadata = {**told, "lora_adapter_metadata": json.dumps(stored, indent=2, sort_keys=True)}
    for file, prefix, metadata in (
        ("pytorch_lora_weights.safetensors", f"{part}.", diffusers_metadata),
        ("adapter_model.safetensors", PEFT, told),
    ):
        with atomic_file(folder / file) as partial:
            save_file({prefix + name: value for name, value in weights.items()}, partial, metadata)
    text = json.dumps({**settings, "inference_mode": True}, indent=2, sort_keys=True)
    with atomic_file(folder / "adapter_config.json") as partial:
        partial.write_text(text + "\n", encoding="utf-8")
