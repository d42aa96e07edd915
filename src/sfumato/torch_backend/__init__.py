"""Checkpoints in PyTorch, as diffusers runs them: the baseline of comparisons."""

from .pipeline import TorchPipeline

__all__ = ["TorchPipeline"]
