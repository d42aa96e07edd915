"""Fake quantization: what is rounded to what, and where gradients go."""

import handmade
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.graphs import four_bits
from sfumato.graphs.compress import Scheme
from sfumato.optimize.ranges import Grid, choose, quantize_weights
from sfumato.train.qat.rounding import (
    ActivationRange,
    Switch,
    WeightRange,
    at_most_one,
    rounded,
    whole,
)

CHANNELS = 32
GROUPS = pytest.mark.parametrize("group", [None, 16])
SHAPES = pytest.mark.parametrize("shape", [(24, CHANNELS), (24, CHANNELS, 3, 3)], ids=["linear", "kernel"])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grid(smooth, shift=0.3):
    """Of an activation [tokens, CHANNELS] whose channels differ in size."""
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((64, CHANNELS)) + shift) * np.exp(rng.standard_normal(CHANNELS))
    weights = rng.standard_normal((24, 1, CHANNELS)).astype(np.float32)
    return choose(handmade.statistics(rows.astype(np.float32)), [weights], smooth)


def even(scales=None):
    """A grid that smooths by these scales, or not at all."""
    return Grid(np.ones(CHANNELS, np.float32) if scales is None else scales, -1.0, 1.0)


def weight_range(weight, group, scales=None, rank=0):
    activation = ActivationRange(even(scales), 1, Switch())
    return WeightRange(weight, activation, group, Switch(), rank)


def some_scales():
    return np.exp(np.random.default_rng(1).standard_normal(CHANNELS) / 2).astype(np.float32)


bounds = st.sampled_from([(-127, 127), (0, 255), (0, 15)])


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    bound=bounds,
    size=st.floats(-9, 9),
    share=st.floats(0, 1),
    short=st.booleans(),
)
def test_values_lie_on_the_grid_and_inside_of_it(seed, bound, size, share, short):
    low, high = bound
    step = torch.tensor(2.0**size)
    zero = torch.tensor(float(round(max(low, 0) + share * (high if low == 0 else 0))))
    x = 2 * (high - low) * step * draw(200, seed=seed)
    x = x.bfloat16() if short else x
    y = rounded(x, step, zero, low, high)
    assert y.dtype == x.dtype
    places = y.double() / step.double() + zero.double()
    tolerance = 1.0 if short else 1e-4  # bfloat16 has 8 digits, of the largest level too
    assert (places - places.round()).abs().max() <= tolerance
    assert places.min() >= low - tolerance and places.max() <= high + tolerance
    exact = x.double() / step.double() + zero.double()
    inside = (exact > low) & (exact < high)
    assert (places - exact)[inside].abs().max() <= 0.5 + tolerance
    assert torch.allclose(places[exact >= high + 1], torch.tensor(float(high)).double(), atol=tolerance)
    assert torch.allclose(places[exact <= low - 1], torch.tensor(float(low)).double(), atol=tolerance)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), size=st.floats(-6, 6))
def test_rounding_again_changes_nothing(seed, size):
    step, zero = torch.tensor(2.0**size), torch.tensor(90.0)
    once = rounded(200 * step * draw(200, seed=seed), step, zero, 0, 255)
    assert torch.equal(rounded(once, step, zero, 0, 255), once)


def by_autograd(x, step, zero, low, high):
    """The same with the rounding's error held still: what LSQ and LSQ+ differentiate."""
    error = (torch.round(x / step) - x / step).detach()
    return ((x / step + error + zero).clamp(low, high) - zero) * step


@pytest.mark.parametrize("shape", [(), (6, 1), (1, 50)])
@pytest.mark.parametrize(("low", "high", "zero"), [(0, 255, 100.0), (-127, 127, 0.0), (0, 15, 6.0)])
def test_gradients_are_those_of_lsq(shape, low, high, zero):
    """Of x, step and zero point, summed over what shares them."""
    arguments = draw(6, 50).double() * (high - low), 0.5 + torch.rand(shape).double(), torch.full(shape, zero)
    upstream = draw(6, 50, seed=1).double()
    given, expected = [], []
    for function, found in ((rounded, given), (by_autograd, expected)):
        leaves = [each.double().clone().requires_grad_(True) for each in arguments]
        y = function(*leaves, low, high)
        found += [y.detach(), *torch.autograd.grad(y, leaves, upstream)]
    for ours, theirs in zip(given, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    inside = expected[1] != 0
    assert 0.1 < inside.double().mean() < 0.95, "both sides are to be seen"
    assert torch.equal(given[1], torch.where(inside, upstream, 0.0))


def test_outside_the_gradients_are_the_slopes():
    """Beyond the range nothing is rounded, so that finite differences tell the slopes."""
    x = torch.tensor([-500.0, -300.0, 400.0, 900.0], dtype=torch.float64)
    upstream = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    at = torch.tensor([0.7, 100.0], dtype=torch.float64, requires_grad=True)
    value = lambda step, zero: (rounded(x, step, zero, 0, 255) * upstream).sum()  # noqa: E731
    (slopes,) = torch.autograd.grad(value(*at), at)
    for index, slope in enumerate(slopes):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[index] = 1e-4
        found = (value(*(at + shift)) - value(*(at - shift))) / 2e-4
        assert float(slope) == pytest.approx(float(found.detach()), rel=1e-6)


def test_whole_numbers_have_the_gradient_of_what_they_were():
    x = torch.tensor([0.4, 1.6, -2.3], requires_grad=True)
    y = whole(x)
    y.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert y.tolist() == [0, 2, -2] and x.grad.tolist() == [1, 2, 3]


def test_at_most_one_can_come_back():
    x = torch.tensor([-2.0, -0.1, 0.0, 0.1, 3.0], requires_grad=True)
    y = at_most_one(x)
    torch.testing.assert_close(y, torch.exp(x).clamp(max=1))
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.exp(x).clamp(max=1).detach())


@pytest.mark.parametrize("widths", [(0.0, 0.0), (-0.4, 0.2), (0.3, -0.7)])
@pytest.mark.parametrize("smooth", [None, 0.5])
@pytest.mark.parametrize("axis", [1, 2])
def test_an_activation_is_what_its_grid_says(axis, smooth, widths):
    activation = ActivationRange(grid(smooth), axis, Switch())
    with torch.no_grad():
        activation.widths.copy_(torch.tensor(widths))
    final = activation.grid()
    x = 3 * draw(2, 40, CHANNELS)
    given = activation(x.movedim(-1, axis)).movedim(axis, -1).detach().numpy()
    expected = final.rounded(x.numpy())
    off = np.abs(given - expected) > 1e-3 * final.step
    assert off.mean() < 1e-3, "but for ties"
    zero = -final.low / final.step
    assert abs(zero - round(zero)) < 1e-4 and 0 <= round(zero) <= 255
    assert (activation(torch.zeros_like(x).movedim(-1, axis)) == 0).all()


@pytest.mark.parametrize("first", [(-2.0, 3.0), (0.0, 3.0), (-2.0, 0.0)])
def test_an_activation_begins_with_its_grid(first):
    begun = Grid(np.ones(CHANNELS, np.float32), *first)
    activation = ActivationRange(begun, 1, Switch())
    found = activation.grid()
    assert (found.low, found.high) == pytest.approx(first, abs=0.5 * begun.step + 1e-6)


def test_a_range_that_cuts_grows_and_one_that_wastes_levels_shrinks():
    x = draw(64, CHANNELS)
    for first, growing in ((0.3, True), (30.0, False)):
        activation = ActivationRange(Grid(np.ones(CHANNELS, np.float32), -first, first), 1, Switch())
        (activation(x) - x).square().sum().backward()
        assert ((activation.widths.grad < 0) == growing).all()


def test_off_nothing_is_touched():
    switch = Switch()
    activation = ActivationRange(grid(0.5), 1, switch)
    weight = draw(24, CHANNELS)
    stored = WeightRange(weight, activation, None, switch, rank=2)
    torch.nn.init.ones_(stored.up)
    x = draw(4, CHANNELS)
    switch.on = False
    assert activation(x) is x and stored(weight) is weight


@SHAPES
@pytest.mark.parametrize("scales", [None, some_scales()], ids=["plain", "smoothed"])
def test_8_bit_weights_are_those_of_the_optimizer(shape, scales):
    weight = draw(*shape)
    given = weight_range(weight, None, scales)(weight)
    matrix = weight.reshape(*shape[:2], -1).permute(0, 2, 1).numpy()
    integers, steps = quantize_weights(matrix * (1 if scales is None else scales))
    expected = torch.from_numpy(integers * steps).permute(0, 2, 1).reshape(shape)
    torch.testing.assert_close(given.detach(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
@pytest.mark.parametrize("scales", [None, some_scales()], ids=["plain", "smoothed"])
@pytest.mark.parametrize("group", [16, CHANNELS])
def test_4_bit_weights_are_those_of_the_optimizer(group, scales, shift):
    weight = draw(24, CHANNELS) + shift
    given = weight_range(weight, group, scales)(weight)
    scaled = weight.numpy() * (1 if scales is None else scales)
    expected = four_bits.restored(np.ascontiguousarray(scaled, np.float32), Scheme("int4"), group)
    torch.testing.assert_close(given.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_tiny_and_zero_weights_stay_finite():
    for group in (None, 16):
        for size in (0.0, 1e-30):
            weight = size * draw(24, CHANNELS)
            stored = weight_range(weight, group)
            y = stored(weight.requires_grad_(True))
            y.square().sum().backward()
            assert y.isfinite().all() and weight.grad.isfinite().all() and stored.widths.grad.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "group"), [((24, CHANNELS), None), ((24, CHANNELS), 16), ((24, CHANNELS, 3, 3), None)]
)
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("scales", [None, some_scales()], ids=["plain", "smoothed"])
def test_what_is_stored_rounds_to_the_same_without_being_told(shape, group, rank, scales):
    weight = draw(*shape)
    trained = weight_range(weight, group, scales, rank)
    with torch.no_grad():
        trained.widths.uniform_(-0.7, 0.3, generator=torch.Generator().manual_seed(0))
        if rank:
            trained.up.normal_(0, 0.3)
    stored = trained.baked(weight)
    anew = weight_range(stored, group, scales)
    given, expected = anew(stored).detach(), trained(weight).detach()
    step = (expected.amax() - expected.amin()) / 255
    assert ((given - expected).abs() > 0.1 * step).float().mean() < 2e-3, "but for ties"
    assert (stored != weight).any()


@GROUPS
def test_weights_and_their_ranges_learn(group):
    weight = draw(24, CHANNELS).requires_grad_(True)
    stored = weight_range(weight, group, some_scales())
    (stored(weight) * draw(24, CHANNELS, seed=1)).sum().backward()
    assert (stored.widths.grad != 0).float().mean() > 0.95
    assert (weight.grad != 0).all(), "with the whole range nothing is cut"
    with torch.no_grad():
        stored.widths.fill_(-0.7)
    weight.grad = None
    (stored(weight) * draw(24, CHANNELS, seed=1)).sum().backward()
    assert 0 < (weight.grad == 0).float().mean() < 0.5


@GROUPS
def test_a_range_of_weights_is_never_wider_than_they_are(group):
    weight = draw(24, CHANNELS)
    stored = weight_range(weight, group)
    exact = stored(weight)
    with torch.no_grad():
        stored.widths.fill_(2.0)
    torch.testing.assert_close(stored(weight), exact)


@GROUPS
def test_an_adapter_begins_as_nothing_and_learns(group):
    weight = draw(24, CHANNELS)
    plain, adapted = weight_range(weight, group), weight_range(weight, group, rank=3)
    assert torch.equal(adapted(weight), plain(weight))
    (adapted(weight) * draw(24, CHANNELS, seed=1)).sum().backward()
    assert (adapted.up.grad != 0).any()
    assert adapted.down.shape == (3, CHANNELS) and adapted.up.shape == (24, 3)


def test_an_adapter_has_no_more_rank_than_its_layer():
    assert weight_range(draw(24, CHANNELS), None, rank=100).rank == 24
    kernel = weight_range(draw(4, CHANNELS, 3, 3), None, rank=100)
    assert kernel.up.shape == (4, 4) and kernel.down.shape == (4, 9 * CHANNELS)
