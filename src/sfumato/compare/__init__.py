"""Measuring pictures: against their prompts, against other pictures, and against real ones."""

from .evaluator import Evaluator, Reading, Scores
from .fidelity import frechet_distance, psnr, recall, ssim

__all__ = ["Evaluator", "Reading", "Scores", "frechet_distance", "psnr", "recall", "ssim"]
