"""Muon (Jordan et al. 2024) for convolutions as well as matrices, which PyTorch's own takes alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.Muon):
    """PyTorch's Muon, where a convolution's weight counts as a matrix of [out, in x height x width].

    Make it after the parameters are on their device: it works on views of their memory.
    """

    def __init__(self, params: list[nn.Parameter], **options: Any) -> None:
        self.sources = params
        self.matrices = [nn.Parameter(_as_matrix(p.detach())) for p in params]
        super().__init__(self.matrices, **options)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        for matrix, source in zip(self.matrices, self.sources, strict=True):
            matrix.grad = None if source.grad is None else _as_matrix(_in_layout_of(source, source.grad))
        loss: float | None = super().step(closure)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for source in self.sources:
            source.grad = None


def _in_layout_of(parameter: Tensor, gradient: Tensor) -> Tensor:
    if parameter.is_contiguous():
        return gradient.contiguous()
    return gradient.contiguous(memory_format=torch.channels_last)


def _as_matrix(weight: Tensor) -> Tensor:
    """View of a weight [out, ...] as [out, the rest], in whichever order the rest lies in memory."""
    rows = weight.shape[0]
    columns = weight.numel() // rows
    return weight.as_strided((rows, columns), (columns, 1))
