"""Distillation of a diffusers checkpoint to few steps, as a LoRA: one method for UNets, one for flows."""
