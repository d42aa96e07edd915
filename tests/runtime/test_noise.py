"""A seed gives the noise that torch's CPU generator gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.errors import InvalidRequest
from sfumato.runtime.noise import Generator, randn

torch = pytest.importorskip("torch")

SEEDS = [0, 7, 2**31 - 1, 2**32 - 1, 2**32 + 5, 2**63 - 1, 2**64 - 1, -1, -(2**63)]
SHAPES = [
    (),
    (1,),
    (15,),
    (16,),
    (17,),
    (31,),
    (32,),
    (1000,),
    (0,),
    (1, 4, 64, 64),
    (16, 16, 16),
    (2, 3, 5, 7),
]


def torch_randn(seed, *shapes):
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn(shape, generator=generator).numpy() for shape in shapes]


def agrees(ours, theirs):
    """The same bits where torch has its AVX2 code; elsewhere its C library's log, sin and cos differ."""
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        return same_bits(ours, theirs)
    return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=0, atol=4e-6)


def same_bits(ours, theirs):
    return ours.dtype == np.float32 and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_equals_torch_bit_for_bit(seed, shape):
    assert agrees(randn(seed, shape), torch_randn(seed, shape)[0])


def test_equals_torch_on_a_million_values():
    assert agrees(randn(42, (1_000_003,)), torch_randn(42, (1_000_003,))[0])


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    sizes=st.lists(st.one_of(st.integers(0, 40), st.integers(600, 700)), min_size=1, max_size=8),
)
def test_the_stream_continues_as_torch_continues_it(seed, sizes):
    generator = Generator(seed)
    for size, expected in zip(sizes, torch_randn(seed, *[(size,) for size in sizes]), strict=True):
        assert agrees(generator.randn((size,)), expected)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_beyond_64_bits_is_refused_as_torch_refuses_it(seed):
    with pytest.raises(ValueError):
        torch.Generator("cpu").manual_seed(seed)
    with pytest.raises(InvalidRequest, match=f"seed {seed}: .*64 bits"):
        Generator(seed)
