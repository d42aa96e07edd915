"""How a checkpoint is sampled once a LoRA has distilled it to few steps."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...errors import InvalidRequest
from .. import FewStep
from ..checkpoints import Checkpoint
from ..defaults import FEW_STEPS
from .fuse import Lora

# Luo et al. 2023 (LCM-LoRA, arXiv 2311.05556; VegaRT is one): diffusers' LCMScheduler on the base model's
# betas. Chadebec et al. 2024 (Flash Diffusion, arXiv 2406.02347) on SD3: re-noising on the flow's sigmas.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lcm": ("lcm", {"_class_name": "LCMScheduler"}),
    "flash": (
        "flow-renoise",
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True},
    ),
}
HINT = re.compile(r"(?<![a-z])(lcm|vega-?rt|flash)(?![a-z])", re.IGNORECASE)

log = logging.getLogger(__name__)


def sampled(checkpoint: Checkpoint, loras: Sequence[Lora], few_step: FewStep | None = None) -> Checkpoint:
    """The checkpoint as it is sampled with these LoRAs: scheduler, steps and guidance.

    few_step: what the LoRAs distil it to; goes before what the files say in `sfumato.sampling`. Files of
    others say nothing, and few steps cannot be seen from the weights: where only a file's or folder's name
    speaks of it, a warning is logged. Raises InvalidRequest for a role that the family does not have.
    """
    for lora in loras:
        checkpoint = lora.sampled(checkpoint)
    if few_step is None:
        if all(lora.sampling is None for lora in loras):
            _hint(loras)
        return checkpoint
    return _with_role(checkpoint, few_step)


def _with_role(checkpoint: Checkpoint, few_step: FewStep) -> Checkpoint:
    if few_step not in SCHEDULERS:
        raise InvalidRequest(f"few-step {few_step!r}: must be one of {', '.join(SCHEDULERS)}")
    family = checkpoint.family.name
    if (few_step == "flash") != (family == "sd3"):
        fitting = "flash" if family == "sd3" else "lcm"
        raise InvalidRequest(f"few-step {few_step}: not for {family} models; they have {fitting}")
    sampler, changes = SCHEDULERS[few_step]
    steps, guidance = FEW_STEPS[sampler]
    scheduler = {**checkpoint.scheduler, **changes}
    index = {
        **checkpoint.index,
        "scheduler": ["diffusers", changes["_class_name"]],
        "defaults": {"steps": steps, "guidance": guidance},
    }
    return replace(checkpoint, scheduler=scheduler, index=index)


def _hint(loras: Sequence[Lora]) -> None:
    for lora in loras:
        for name in reversed(lora.file.absolute().parts[-4:]):
            if match := HINT.search(name):
                role = "flash" if match[1].lower() == "flash" else "lcm"
                log.warning(
                    "%s: %r sounds like a LoRA for few steps, but the file does not say so; if it is one, "
                    "convert with --few-step %s, else the model keeps the checkpoint's sampler",
                    lora.file,
                    name,
                    role,
                )
                break
