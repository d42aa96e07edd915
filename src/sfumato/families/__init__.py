"""Model families: which parts there are, and how encoded prompts become the denoiser's inputs."""

from .base import (
    CLIP_KINDS,
    TEXT_KINDS,
    Array,
    Component,
    ConditioningSettings,
    Encoded,
    Family,
    Kind,
    PromptContext,
)
from .sd import SD
from .sd3 import SD3
from .sdxl import SDXL

FAMILIES: dict[str, Family] = {family.name: family for family in (SD, SDXL, SD3)}

__all__ = [
    "CLIP_KINDS",
    "FAMILIES",
    "SD",
    "SD3",
    "SDXL",
    "TEXT_KINDS",
    "Array",
    "Component",
    "ConditioningSettings",
    "Encoded",
    "Family",
    "Kind",
    "PromptContext",
]
