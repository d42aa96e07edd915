"""Compiled networks: the same numbers and names, and a clear error without a compiler."""

import copy

import pytest
import torch
from torch import nn

from sfumato.errors import MissingDependency
from sfumato.train.compiled import compile_network


def test_a_compiled_network_computes_and_learns_the_same():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    fused = copy.deepcopy(plain)
    compile_network(fused)
    assert list(fused.state_dict()) == list(plain.state_dict())
    x = torch.randn(3, 8)
    for network in (plain, fused):
        network(x).square().sum().backward()
    torch.testing.assert_close(fused(x), plain(x))
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingDependency, match=r"'no-such-compiler'.*apt install"):
        compile_network(nn.Linear(2, 2))
