"""Quantization-aware training: a checkpoint learns to be its own 8-bit model."""
