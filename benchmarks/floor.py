"""The least time a step can take on this machine, and where the rest goes: models against measured rates.

    python benchmarks/floor.py mini
    python benchmarks/floor.py ./sd15-int8 ./sd15-fp16 --size 512x512 --threads 1 --json

Rates are multiply-adds a second of large products and convolutions in INT8, bf16 (where the processor has it)
and f32, the best of several, and bytes a second of an addition far beyond the caches. The floor is, for each
operation, the longer of its arithmetic at those rates and of reading its weights once, all added up. "moved"
is what reading and writing everything else would take if caches held none of it, and no part of the floor.
Times are of one run of a network, the models' networks in turn; for the denoiser that is one guided step. The
kinds of operations are OpenVINO's own profile of further runs.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from arithmetic import Work, work_of
from rates import Clock, Rates, measure

from sfumato.artifact import find_model, load_artifact
from sfumato.compare.artifact_engine import TimedNetwork
from sfumato.compare.profile import Operations, ProfiledDevice
from sfumato.runtime.devices import Device, Devices, core
from sfumato.runtime.parameters import parse_size
from sfumato.runtime.pipeline import Pipeline

KINDS = {
    "Convolution": "convolution",
    "GroupConvolution": "convolution",
    "FullyConnected": "matrix product",
    "FullyConnectedCompressed": "matrix product",
    "FullyConnectedQuantized": "matrix product",
    "FullyConnectedQuantizedLegacy": "matrix product",
    "MatMul": "matrix product",
    "ScaledDotProductAttention": "attention",
    "MVN": "normalization",
    "GroupNormalization": "normalization",
    "RMS": "normalization",
    "Reorder": "reorder",
    "Transpose": "transpose, concatenation, split",
    "Concat": "transpose, concatenation, split",
    "VariadicSplit": "transpose, concatenation, split",
}
REST = "elementwise and rest"
Outputs = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Demand:
    """What one run of a network takes at least.

    type: of what is not quantized. floor: seconds. moved: seconds of activations to and from memory.
    """

    type: str
    int8_macs: int
    float_macs: int
    weights_bytes: float
    activations_bytes: float
    floor: float
    moved: float


@dataclass(frozen=True)
class Row:
    """One network. Seconds of one run; kinds: seconds by kind of operation, as it was executed."""

    model: str
    network: str
    shapes: dict[str, tuple[int, ...]]
    demand: Demand
    median: float
    best: float
    ratio: float
    kinds: dict[str, float]


class Recorded(TimedNetwork):
    """A network that can repeat its last run."""

    calls = 0
    inputs: Mapping[str, Any]
    outputs: Outputs

    def __call__(self, inputs: Any, outputs: Outputs) -> dict[str, Any]:
        self.calls, self.inputs, self.outputs = self.calls + 1, dict(inputs), outputs
        return super().__call__(inputs, outputs)

    def again(self, clock: Clock = time.perf_counter) -> float:
        """Repeat; returns seconds."""
        began = clock()
        self(self.inputs, self.outputs)
        return clock() - began

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(array.shape) for name, array in self.inputs.items()}

    @property
    def compiled(self) -> Any:
        return self._request.get_compiled_model()

    def work(self) -> tuple[list[Work], str]:
        """What a run computes, and the type of what is not quantized."""
        name = self.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        model = core().read_model(self.path)
        model.reshape({port: list(shape) for port, shape in self.shapes.items()})
        return work_of(model, 4 if name == "f32" else 2), name


def loaded(source: str, device: Device, options: argparse.Namespace) -> list[Recorded]:
    """A model's networks that take part in making a picture, after they did."""
    networks: list[Recorded] = []

    def make(*given: Any) -> Recorded:
        networks.append(Recorded(*given, on_run=lambda network, began, ended: None))
        return networks[-1]

    artifact = load_artifact(find_model(source))
    devices = Devices.parse("CPU", tuple(artifact.manifest.components), device)
    Pipeline(artifact, devices, "high", make)(options.prompt, steps=1, seed=0, size=options.size)
    return [network for network in networks if network.calls]


def demand_of(work: list[Work], name: str, rates: Rates) -> Demand:
    """Add up what the operations need. name: the type of what is not quantized."""
    activations = sum(each.activations for each in work)
    return Demand(
        type=name,
        int8_macs=sum(each.int8_macs for each in work),
        float_macs=sum(each.float_macs for each in work),
        weights_bytes=sum(each.weights for each in work),
        activations_bytes=activations,
        floor=sum(_least(each, name, rates) for each in work),
        moved=activations / rates.bytes,
    )


def _least(each: Work, name: str, rates: Rates) -> float:
    arithmetic = each.int8_macs / rates.of("int8") + each.float_macs / rates.of(name)
    return max(arithmetic, each.weights / rates.bytes)


def kinds_of(network: Recorded, attention: set[str], runs: int) -> dict[str, float]:
    """Seconds of a run by kind of operation; attention: the names of such operations in the graph.

    The profile tells means over all runs, of which the first also prepare weights: those are taken off.
    """
    calls, before = network.calls, seconds_of(network.operations)
    for _ in range(runs):
        network.again()
    after = network.operations
    fused = _fused(network.compiled.get_runtime_model())
    kinds: Counter[str] = Counter()
    for info, mean in zip(after, seconds_of(after).values(), strict=True):
        attends = not attention.isdisjoint(fused.get(info.node_name, set()))
        kind = "attention" if attends else kind_of(info.node_type, info.exec_type)
        own = (mean * network.calls - before[info.node_name] * calls) / runs
        kinds[kind] += round(own * 1e9)
    return {kind: nanoseconds / 1e9 for kind, nanoseconds in kinds.most_common() if nanoseconds > 0}


def kind_of(node_type: str, exec_type: str) -> str:
    """The kind of an executed operation, products in INT8 apart."""
    kind = KINDS.get(node_type, REST)
    eight_bits = kind in ("convolution", "matrix product") and "I8" in exec_type.upper()
    return f"{kind}, int8" if eight_bits else kind


def seconds_of(operations: Operations) -> dict[str, float]:
    return {info.node_name: info.real_time.total_seconds() for info in operations}


def _fused(model: Any) -> dict[str, set[str]]:
    """The names of the graph's operations that each executed one stands for."""
    names = {}
    for node in model.get_ops():
        said = node.get_rt_info()["originalLayersNames"]
        names[node.get_friendly_name()] = set(said.astype(str).split(","))
    return names


def rows(options: argparse.Namespace, rates: Rates) -> Iterator[Row]:
    """Time all networks in turn, then profile one model after the other."""
    device = Device("CPU", options.precision, options.threads or None)
    profiled = ProfiledDevice("CPU", options.precision, options.threads or None, cached=False)
    models = {source: loaded(source, device, options) for source in options.models}
    networks = [(source, network) for source, each in models.items() for network in each]
    times = [[network.again(options.clock) for _, network in networks] for _ in range(options.runs)]
    work = {(source, network.name): network.work() for source, network in networks}
    for _, network in networks:
        network.release()
    seconds = {
        (source, network.name): each
        for (source, network), each in zip(networks, zip(*times, strict=True), strict=True)
    }
    for source in options.models:
        for network in loaded(source, profiled, options):
            place = source, network.name
            demand = demand_of(*work[place], rates)
            attention = {each.name for each in work[place][0] if each.kind == "attention"}
            median = statistics.median(seconds[place])
            yield Row(
                source,
                network.name,
                network.shapes,
                demand,
                median,
                min(seconds[place]),
                median / demand.floor,
                kinds_of(network, attention, options.runs),
            )
            network.release()


def print_rates(rates: Rates) -> None:
    for name, found in rates.macs.items():
        said = ", ".join(f"{operation} {rate / 1e9:.0f}" for operation, rate in found.items())
        print(f"{name}: {said} G multiply-adds/s", file=sys.stderr)
    print(f"memory: {rates.bytes / 1e9:.1f} GB/s", file=sys.stderr)


def print_table(found: list[Row]) -> None:
    print("| model | network | GMAC int8 | other | weights MB | activations MB | floor s | moved s | s | x |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in found:
        need = row.demand
        macs = f"{need.int8_macs / 1e9:.2f} | {need.float_macs / 1e9:.2f} {need.type}"
        moved = f"{need.weights_bytes / 1e6:.1f} | {need.activations_bytes / 1e6:.1f}"
        times = f"{need.floor:.4f} | {need.moved:.4f} | {row.median:.4f} | {row.ratio:.2f}"
        print(f"| {row.model} | {row.network} | {macs} | {moved} | {times} |")
    print("\n| model | network | kind | s | share |\n|---|---|---|---|---|")
    for row in found:
        total = sum(row.kinds.values())
        for kind, value in row.kinds.items():
            print(f"| {row.model} | {row.network} | {kind} | {value:.4f} | {value / total:.0%} |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", help="model folders, or names of known models")
    parser.add_argument("--size", type=parse_size, help="WxH; each model's own by default")
    parser.add_argument("--prompt", default="noto red apple")
    parser.add_argument("--precision", help="f32 or bf16; the device's own by default")
    parser.add_argument("--threads", type=int, default=0, help="OpenVINO's own choice by default")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--processor-time",
        dest="clock",
        action="store_const",
        const=time.process_time,
        default=time.perf_counter,
        help="count the processor's time instead, on a machine that does other work; with --threads 1",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.clock is time.process_time and options.threads != 1:
        parser.error("--processor-time: with --threads 1 alone, as threads that wait count too")
    return options


def main() -> None:
    options = parse()
    rates = measure(options.threads, options.runs, options.clock)
    print_rates(rates)
    found = list(rows(options, rates))
    if options.json:
        report = {
            "threads": options.threads,
            "clock": options.clock.__name__,
            "rates": asdict(rates),
            "rows": [asdict(row) for row in found],
        }
        print(json.dumps(report, indent=2))
    else:
        print_table(found)


if __name__ == "__main__":
    main()
