"""Checkpoints that are one safetensors file in the layout that their authors published them in."""

from .opening import open_single_file

__all__ = ["open_single_file"]
