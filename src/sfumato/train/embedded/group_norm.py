"""Group normalization that trains fast in channels-last layout on a CPU.

PyTorch 2.13's backward of `group_norm` takes 37 percent of an autoencoder's training step in channels-last
layout (and convolutions are slower in the other one); this one takes a few percent.
"""

from typing import Any

import torch
from torch import Tensor, nn


class _ChannelsLastGroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        n, channels, height, width = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(n, height * width, channels)
        mean = _group_mean(tokens.sum(1, dtype=torch.float32), groups, height * width)
        square = _group_mean((tokens * tokens).sum(1, dtype=torch.float32), groups, height * width)
        inverse = (square - mean * mean).clamp_min(0).add(eps).rsqrt()
        scale = inverse * weight
        shift = bias - mean * scale
        y = torch.addcmul(shift[:, None].to(x.dtype), tokens, scale[:, None].to(x.dtype))
        ctx.save_for_backward(tokens, weight, mean, inverse)
        ctx.groups = groups
        return y.view(n, height, width, channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight, mean, inverse = ctx.saved_tensors
        (dy,) = gradients
        n, channels, height, width = dy.shape
        d = dy.permute(0, 2, 3, 1).reshape(n, height * width, channels)
        d_sum = d.sum(1, dtype=torch.float32)
        d_dot = ((d * tokens).sum(1, dtype=torch.float32) - mean * d_sum) * inverse
        a = _group_mean(d_sum * weight, ctx.groups, height * width)
        b = _group_mean(d_dot * weight, ctx.groups, height * width)
        of_d = (inverse * weight)[:, None].to(d.dtype)
        of_x = (-inverse * inverse * b)[:, None].to(d.dtype)
        constant = (inverse * inverse * b * mean - inverse * a)[:, None].to(d.dtype)
        dx = torch.addcmul(torch.addcmul(constant, d, of_d), tokens, of_x)
        dx = dx.view(n, height, width, channels).permute(0, 3, 1, 2)
        return dx, d_dot.sum(0), d_sum.sum(0), None, None


def _group_mean(per_channel: Tensor, groups: int, positions: int) -> Tensor:
    """Mean over each group's channels and positions, repeated for its channels: [batch, channels]."""
    n, channels = per_channel.shape
    per_group = per_channel.view(n, groups, -1).sum(2) / (positions * channels // groups)
    return per_group.repeat_interleave(channels // groups, 1)


def _forward(self: nn.GroupNorm, x: Tensor) -> Tensor:
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return _ChannelsLastGroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)
    return nn.functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def use_channels_last(model: nn.Module) -> nn.Module:
    """Put `model` into channels-last layout with the fast group normalization; returns it."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = _forward.__get__(module)
    return model.to(memory_format=torch.channels_last)
