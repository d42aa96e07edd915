"""How a checkpoint is sampled once a LoRA has distilled it to few steps."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import InvalidRequest
from ...families import Family
from .. import FewStep
from ..checkpoints import Checkpoint
from ..defaults import FEW_STEPS, guidance_embedding_dim
from .fuse import Lora

# Evenly spaced steps of Euler's method from the very first timestep: Lin et al. 2024 (SDXL-Lightning, arXiv
# 2402.13929). DDIM on these timesteps, which Hyper-SD asks for, is the same.
TRAILING_EULER = {
    "_class_name": "EulerDiscreteScheduler",
    "timestep_spacing": "trailing",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}


@dataclass(frozen=True)
class Role:
    """What LoRAs of a kind change in a scheduler_config, and the steps and guidance that they want."""

    scheduler: dict[str, Any]
    steps: int
    guidance: float

    def suits(self, family: Family) -> bool:
        """Whether the scheduler is one of the family's models: of flows, or of noise."""
        flow = str(self.scheduler["_class_name"]).startswith("FlowMatch")
        return flow == (family.denoiser == "transformer")


# Luo et al. 2023 (LCM-LoRA, arXiv 2311.05556; VegaRT is one): diffusers' LCMScheduler on the base model's
# betas. Chadebec et al. 2024 (Flash Diffusion, arXiv 2406.02347) on SD3: re-noising on the flow's sigmas.
ROLES: dict[FewStep, Role] = {
    "lcm": Role({"_class_name": "LCMScheduler"}, *FEW_STEPS["lcm"]),
    "lightning": Role(TRAILING_EULER, 4, 1.0),
    "flash": Role(
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True},
        *FEW_STEPS["flow-renoise"],
    ),
}
HINT = re.compile(
    r"(?<![a-z])(?:(?P<lcm>lcm|vega-?rt)|(?P<lightning>sdxl[-_]?lightning|hyper-?sd(?:xl)?)|(?P<flash>flash))"
    r"(?![a-z])",
    re.IGNORECASE,
)

log = logging.getLogger(__name__)


def sampled(checkpoint: Checkpoint, loras: Sequence[Lora], few_step: FewStep | None = None) -> Checkpoint:
    """The checkpoint as it is sampled with these LoRAs: scheduler, steps and guidance.

    few_step: what the LoRAs distil it to; goes before what the files say in `sfumato.sampling`. Files of
    others say nothing, and few steps cannot be seen from the weights: where only a file's or folder's name
    speaks of it, a warning is logged. Raises InvalidRequest for a role that the family does not have, and for
    any where the checkpoint is a latent consistency model itself.
    """
    if guidance_embedding_dim(checkpoint.parts[checkpoint.family.denoiser].config) is not None:
        return _few_already(checkpoint, loras, few_step)
    for lora in loras:
        checkpoint = lora.sampled(checkpoint)
    if few_step is None:
        if all(lora.sampling is None for lora in loras):
            _hint(loras)
        return checkpoint
    return _with_role(checkpoint, few_step)


def _few_already(checkpoint: Checkpoint, loras: Sequence[Lora], few_step: FewStep | None) -> Checkpoint:
    """The checkpoint as it is, for LoRAs that change the style alone."""
    said = [f"few-step {few_step}"] if few_step else []
    said += [f"{lora.file}: distils to few steps" for lora in loras if lora.sampling is not None]
    if said:
        raise InvalidRequest(
            f"{said[0]}: not for {checkpoint.folder}, which is distilled to few steps already (its UNet "
            "takes the guidance as an input); leave it out, or convert the model that it was made for"
        )
    return checkpoint


def _with_role(checkpoint: Checkpoint, few_step: FewStep) -> Checkpoint:
    if few_step not in ROLES:
        raise InvalidRequest(f"few-step {few_step!r}: must be one of {', '.join(ROLES)}")
    role, family = ROLES[few_step], checkpoint.family
    if not role.suits(family):
        fitting = " or ".join(name for name, other in ROLES.items() if other.suits(family))
        raise InvalidRequest(f"few-step {few_step}: not for {family.name} models; they have {fitting}")
    scheduler = {**checkpoint.scheduler, **role.scheduler}
    index = {
        **checkpoint.index,
        "scheduler": ["diffusers", role.scheduler["_class_name"]],
        "defaults": {"steps": role.steps, "guidance": role.guidance},
    }
    return replace(checkpoint, scheduler=scheduler, index=index)


def _hint(loras: Sequence[Lora]) -> None:
    for lora in loras:
        for name in reversed(lora.file.absolute().parts[-4:]):
            if match := HINT.search(name):
                log.warning(
                    "%s: %r sounds like a LoRA for few steps, but the file does not say so; if it is one, "
                    "convert with --few-step %s, else the model keeps the checkpoint's sampler",
                    lora.file,
                    name,
                    match.lastgroup,
                )
                break
