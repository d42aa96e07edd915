"""LoRA files (Hu et al. 2021, arXiv 2106.09685) of every usual format, matched to a checkpoint and fused."""

from .formats import PEFT
from .fuse import Layer, Lora, fuse_all
from .metadata import SAMPLING
from .read import read_lora
from .sampling import TRAILING_EULER, sampled

__all__ = ["PEFT", "SAMPLING", "TRAILING_EULER", "Layer", "Lora", "fuse_all", "read_lora", "sampled"]
