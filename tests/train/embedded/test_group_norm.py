"""Group normalization in channels-last layout against PyTorch's."""

import torch

from sfumato.train.embedded.group_norm import use_channels_last


def test_group_norm_agrees_with_torch():
    torch.manual_seed(0)
    reference = torch.nn.GroupNorm(4, 32)
    torch.nn.init.normal_(reference.weight)
    fast = use_channels_last(torch.nn.Sequential(torch.nn.GroupNorm(4, 32)))
    fast[0].load_state_dict(reference.state_dict())
    x = torch.randn(2, 32, 8, 8).contiguous(memory_format=torch.channels_last)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    gradient = torch.randn(2, 32, 8, 8)
    reference(a).backward(gradient)
    fast(b).backward(gradient)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(reference.weight.grad, fast[0].weight.grad, rtol=1e-4, atol=1e-4)
