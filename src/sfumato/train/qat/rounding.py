"""Fake quantization: tensors rounded as the artifact will round them, with gradients that pass through.

Learned ranges follow LSQ (Esser et al. 2019, arXiv 1902.08153) and, with a zero point, LSQ+ (Bhalgat et al.
2020, arXiv 2004.09576). A range is learned as the logarithm of its share of the range it began with, so that
one learning rate suits all of them.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.optimize.ranges import LEVELS, Grid

EIGHT = 127
"""Weights in 8 bits are whole numbers from -EIGHT to EIGHT."""
FOUR = 15
"""Weights in 4 bits are whole numbers from 0 to FOUR, with a zero point."""
TINY = 1e-12


class _Rounded(torch.autograd.Function):
    """(clamp(round(x / step) + zero, low, high) - zero) * step, the gradient of rounding taken as 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, step, zero)
        ctx.limits = low, high
        whole = torch.round(_wide(x) / step).add_(zero).clamp_(low, high)
        return whole.sub_(zero).mul_(step).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, step, zero = ctx.saved_tensors
        low, high = ctx.limits
        (gradient,) = gradients
        scaled = _wide(x) / step
        place = torch.round(scaled).add_(zero)
        inside = (place >= low) & (place <= high)
        passed = torch.where(inside, gradient, 0.0)
        of_step = gradient * (place.clamp_(low, high).sub_(zero) - torch.where(inside, scaled, 0.0))
        of_zero = (passed - gradient) * step
        return (
            passed.to(x.dtype),
            of_step.sum_to_size(step.shape),
            of_zero.sum_to_size(zero.shape),
            None,
            None,
        )


def _wide(x: Tensor) -> Tensor:
    """At least float32: bfloat16 has no fractions left beyond 128 steps."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rounded(x: Tensor, step: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """x on the grid (whole - zero) * step, whole from low to high; step and zero broadcast to x's shape.

    Gradients reach x where it lies inside, and step and zero everywhere.
    """
    return _Rounded.apply(x, step, zero, low, high)


def whole(x: Tensor) -> Tensor:
    """x rounded, its gradient that of x."""
    return x + (torch.round(x) - x).detach()


def at_most_one(logarithm: Tensor) -> Tensor:
    """exp of it, but never above 1; the gradient flows there too, or a range could not come back."""
    return torch.exp(logarithm - torch.relu(logarithm).detach())


class Switch:
    """Whether the quantizers that share it act. Off, a network is as it was before it got them."""

    def __init__(self) -> None:
        self.on = True


class ActivationRange(nn.Module):
    """An activation in 8 bits: x / scales, rounded to 256 levels with zero among them.

    widths: [2], the learned logarithms of the shares of the first low and high. axis: that of the channels.
    """

    def __init__(self, grid: Grid, axis: int, switch: Switch) -> None:
        super().__init__()
        self.axis, self.switch = axis, switch
        self.register_buffer("scales", torch.from_numpy(np.array(grid.scales)))
        self.register_buffer("first", torch.tensor([grid.low, grid.high]))
        self.widths = nn.Parameter(torch.zeros(2))
        self.plain = bool((grid.scales == 1).all())

    def forward(self, x: Tensor) -> Tensor:
        """x, [..., channels, ...], divided by the scales and rounded, in x's dtype."""
        if not self.switch.on:
            return x
        if not self.plain:
            shape = [1] * x.dim()
            shape[self.axis] = -1
            x = x / self.scales.view(shape).to(x.dtype)
        step, zero = self._step_and_zero()
        return rounded(x, step, zero, 0, LEVELS - 1)

    def _step_and_zero(self) -> tuple[Tensor, Tensor]:
        low, high = (self.first * torch.exp(self.widths)).unbind()
        step = (high - low) / (LEVELS - 1)
        return step, whole(-low / step)

    @torch.no_grad()
    def grid(self) -> Grid:
        """The range as it is now."""
        step, zero = (float(each) for each in self._step_and_zero())
        return Grid(self.scales.cpu().numpy(), -zero * step, (LEVELS - 1 - zero) * step)


class WeightRange(nn.Module):
    """Weights in 8 or 4 bits, multiplied by the scales that their input was divided by.

    A parametrization of a layer's weight. 8 bits are symmetric, one scale for an output; 4 bits have a zero
    point for each `group` inputs. Ranges are those of the weights as they are now times a learned share of
    at most 1 (`widths` its logarithm), so that `baked` weights have them without being told.
    rank: of a low-rank adapter that is added to the weights (Hu et al. 2021, arXiv 2106.09685); 0 for none.
    """

    def __init__(
        self, weight: Tensor, activation: ActivationRange, group: int | None, switch: Switch, rank: int
    ) -> None:
        super().__init__()
        self.group, self.switch, self.plain = group, switch, activation.plain
        outputs, inputs = weight.shape[:2]
        self.register_buffer("scales", activation.scales.view(1, -1, *[1] * (weight.dim() - 2)).clone())
        ranges = (outputs, 1) if group is None else (outputs, inputs // group, 1)
        self.widths = nn.Parameter(torch.zeros(ranges))
        self.rank = min(rank, outputs, inputs)
        if self.rank:
            taken = weight[0].numel()
            self.down = nn.Parameter(torch.randn(self.rank, taken) / taken**0.5)
            self.up = nn.Parameter(torch.zeros(outputs, self.rank))

    def forward(self, weight: Tensor) -> Tensor:
        return self._rounded(weight) if self.switch.on else weight

    @torch.no_grad()
    def baked(self, weight: Tensor) -> Tensor:
        """The weights, with the adapter, once they are rounded: rounding them anew gives the same integers.

        Not those before it, as 16 bits cannot hold these: of 4-bit weights that lie between two integers, one
        in a hundred would go to the other one, which training has not seen.
        """
        return self._rounded(weight) / self.scales

    def _rounded(self, weight: Tensor) -> Tensor:
        low, high, flat = self._limits(self._scaled(weight))
        if self.group is None:
            step = (high / EIGHT).clamp_min(TINY)
            return rounded(flat, step, torch.zeros_like(step), -EIGHT, EIGHT).view(weight.shape)
        step = _float16((high - low) / FOUR)
        zero = torch.round(-low / step).clamp(0, FOUR).detach()
        return rounded(flat, step, zero, 0, FOUR).view(weight.shape)

    def _scaled(self, weight: Tensor) -> Tensor:
        if self.rank:
            weight = weight + (self.up @ self.down).view(weight.shape)
        return weight if self.plain else weight * self.scales

    def _limits(self, scaled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Low and high of each range, and the weights by range ([outputs, ...])."""
        share = at_most_one(self.widths)
        if self.group is None:
            flat = scaled.flatten(1)
            high = flat.detach().abs().amax(1, keepdim=True) * share
            return -high, high, flat
        flat = scaled.reshape(len(scaled), -1, self.group)
        low = flat.detach().amin(2, keepdim=True).clamp_max(0)
        high = flat.detach().amax(2, keepdim=True).clamp_min(0)
        return low * share, high * share, flat


def _float16(steps: Tensor) -> Tensor:
    """Steps as 16 bits hold them, as scales of groups are stored."""
    smallest = torch.finfo(torch.float16).tiny
    held = steps.detach().clamp_min(smallest).half().float()
    return steps + (held - steps).detach()
