"""A denoiser with quantizers in it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from sfumato.optimize.ranges import Grid
from sfumato.train.qat.layers import Readers
from sfumato.train.qat.rounding import ActivationRange, Switch, WeightRange


class Quantizers(nn.Module):
    """Quantizers on a denoiser's layers: a range for each activation, one for each layer's weights.

    Layers stay where and what they are: weights are parametrized, activations rounded by a hook before each
    layer that reads them. So gradient checkpointing recomputes with quantizers as well.
    rank: of low-rank adapters on the quantized layers; 0 for none.
    """

    def __init__(
        self, denoiser: nn.Module, readers: Sequence[Readers], grids: Sequence[Grid], rank: int = 0
    ) -> None:
        super().__init__()
        self.switch = Switch()
        self.activations = nn.ModuleList()
        modules = dict(denoiser.named_modules())
        self._layers: dict[str, tuple[Any, ActivationRange]] = {}
        for each, grid in zip(readers, grids, strict=True):
            activation = ActivationRange(grid, each.axis, self.switch)
            self.activations.append(activation)
            for name, group in zip(each.names, each.groups, strict=True):
                layer: Any = modules[name]
                weight = WeightRange(layer.weight, activation, group, self.switch, rank)
                parametrize.register_parametrization(layer, "weight", weight, unsafe=True)
                layer.register_forward_pre_hook(_rounding(activation))
                self._layers[name] = layer, activation

    def ranges(self) -> list[nn.Parameter]:
        """What ranges learn by: those of activations, then those of weights."""
        return [
            *(each.widths for each in self.activations),
            *(weight.widths for weight in self._weights()),
        ]

    def adapters(self) -> list[nn.Parameter]:
        """The low-rank adapters' matrices."""
        return [matrix for each in self._weights() if each.rank for matrix in (each.down, each.up)]

    @contextmanager
    def off(self) -> Iterator[None]:
        """The denoiser without quantizers and adapters: in the low-memory variant, its own teacher."""
        self.switch.on = False
        try:
            yield
        finally:
            self.switch.on = True

    def weights(self) -> dict[str, Tensor]:
        """The quantized layers' weights as they are to be stored, by the names of parameters."""
        return {
            f"{name}.weight": weight.baked(layer.parametrizations.weight.original)
            for (name, (layer, _)), weight in zip(self._layers.items(), self._weights(), strict=True)
        }

    def grids(self) -> Mapping[str, Grid]:
        """What each layer's activation is rounded to, by the layer's name."""
        return {name: activation.grid() for name, (_, activation) in self._layers.items()}

    def _weights(self) -> list[WeightRange]:
        return [layer.parametrizations.weight[0] for layer, _ in self._layers.values()]


def state(denoiser: nn.Module, quantizers: Quantizers) -> dict[str, Tensor]:
    """The denoiser's tensors as a checkpoint has them, quantized layers ready to be stored."""
    ready = quantizers.weights()
    kept = {
        name.replace(".parametrizations.weight.original", ".weight"): value
        for name, value in denoiser.state_dict().items()
        if ".parametrizations.weight.0." not in name
    }
    return {name: ready.get(name, value).detach().contiguous() for name, value in kept.items()}


def _rounding(activation: ActivationRange) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (activation(inputs[0]), *inputs[1:])

    return hook
