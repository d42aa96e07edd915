"""What a run begins with: ranges from noised latents."""

import handmade
import numpy as np
import pytest
import torch
from torch import nn

from sfumato.errors import InvalidRequest
from sfumato.optimize.ranges import choose
from sfumato.train.embedded.dataset import Record
from sfumato.train.examples import RecordExamples
from sfumato.train.qat.begin import RANGES, beginning
from sfumato.train.qat.layers import Readers
from sfumato.train.qat.levels import Flow
from sfumato.train.qat.observe import first_grids
from sfumato.train.qat.task import Conditioned


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other, self.kernel = nn.Linear(16, 24), nn.Linear(16, 8), nn.Conv2d(16, 4, 3)


@pytest.mark.parametrize("smooth", [None, 0.5, "auto"])
def test_first_grids_are_those_of_the_optimizer(smooth):
    """Of all that was read, by the layers that read it; "auto" chooses by rows, of which not all are kept."""
    module = Layers()
    rng = np.random.default_rng(0)
    spread = np.exp(rng.standard_normal(16))
    tokens = (rng.standard_normal((3, 5, 24, 16)) * spread).astype(np.float32)
    images = (rng.standard_normal((3, 2, 16, 6, 6)) * spread[:, None, None] + 1).astype(np.float32)

    def run(x, image):
        module.one(torch.from_numpy(x))
        module.other(torch.from_numpy(x))
        module.kernel(torch.from_numpy(image))

    readers = [Readers(("one", "other"), 2, (None, None)), Readers(("kernel",), 1, (None,))]
    runs = [lambda x=x, image=image: run(x, image) for x, image in zip(tokens, images, strict=True)]
    found = first_grids(module, readers, smooth, runs)
    linear = [each.weight.detach().numpy()[:, None] for each in (module.one, module.other)]
    kernel = module.kernel.weight.detach().numpy().reshape(4, 16, 9).transpose(0, 2, 1)
    seen = handmade.rows(tokens, 3), handmade.rows(np.moveaxis(images, 2, -1), 4)
    for grid, rows, weights in zip(found, seen, (linear, [kernel]), strict=True):
        expected = [choose(handmade.statistics(rows), weights, each) for each in _strengths(smooth)]
        assert any(
            grid.low == pytest.approx(each.low, rel=1e-5)
            and grid.high == pytest.approx(each.high, rel=1e-5)
            and np.allclose(grid.scales, each.scales, rtol=1e-5)
            for each in expected
        )
    assert not any(module._forward_pre_hooks for module in module.modules())


def _strengths(smooth):
    return (0.0, 0.5, 0.75) if smooth == "auto" else (smooth,)


@pytest.fixture
def shown(student):
    """`shown(made)`: random latents as training pictures."""

    def make(made):
        latents = torch.randn(4, made.base.pipe.vae.config.latent_channels, 8, 8)
        records = [Record("noto", n, n, (n,), (), "food", "train") for n in ("apple", "house", "cat", "face")]
        examples = RecordExamples(latents, records, np.full(4, 0.25))
        return Conditioned(made.base, examples, Flow(made.base.pipe.scheduler), 0.5)

    return make


def begun(folder, made, shown, samples=6):
    with made.quantizers.off():
        return beginning(folder, made.denoiser, made.readers, made.recipe.smooth, shown, samples, 4)


def test_ranges_are_found_once(student, shown, tmp_path):
    made = student("sd3")
    given = shown(made)
    calls = []
    made.denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    first = begun(tmp_path, made, given)
    assert len(calls) == 2, "six latents, four at once"
    again = begun(tmp_path, made, given)
    assert len(calls) == 2 and len(first) == len(made.readers)
    for one, other in zip(first, again, strict=True):
        assert (one.low, one.high) == (other.low, other.high) and one.low <= 0 < one.high
        np.testing.assert_array_equal(one.scales, other.scales)
        assert one.scales.dtype == np.float32
    assert not list(tmp_path.glob("*.partial")) and [each.name for each in tmp_path.iterdir()] == [RANGES]


def test_ranges_are_a_function_of_the_settings_alone(student, shown, tmp_path):
    made = student("sd3")
    given = shown(made)
    found = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        torch.manual_seed(hash(name) % 100)
        found.append(begun(tmp_path / name, made, given))
    assert [(each.low, each.high) for each in found[0]] == [(each.low, each.high) for each in found[1]]


@pytest.mark.parametrize("damage", ["cut", "emptied", "of fewer layers"])
def test_damaged_ranges_are_refused(damage, student, shown, tmp_path):
    made = student("sd3")
    given = shown(made)
    begun(tmp_path, made, given, samples=2)
    file = tmp_path / RANGES
    if damage == "of fewer layers":
        with np.load(file) as arrays:
            kept = {name: value for name, value in arrays.items() if not name.startswith("3.")}
        np.savez(file, **kept)
    else:
        file.write_bytes(file.read_bytes()[: 500 if damage == "cut" else 0])
    with pytest.raises(InvalidRequest, match=r"ranges\.npz: damaged .* to begin anew"):
        begun(tmp_path, made, given, samples=2)
