"""What a machine does at best: multiply-adds a second by type, and bytes a second from memory."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino
from arithmetic import work_of
from openvino import opset13 as ops

from sfumato.runtime.devices import core

LAYERS, ROWS, WIDTH = 4, 1024, 2048
CHANNELS, SIDE = 512, 64
COPIED = 2**26
"""Values of float32: 256 MB read and as much written."""
Clock = Callable[[], float]


@dataclass(frozen=True)
class Rates:
    """macs: multiply-adds a second, by type ("int8", "bf16", "f32") and operation. bytes: a second."""

    macs: dict[str, dict[str, float]]
    bytes: float

    def of(self, name: str) -> float:
        """The highest of a type; f32's for a type that the processor has not."""
        return max(self.macs.get(name, self.macs["f32"]).values())


def measure(threads: int, runs: int, clock: Clock = time.perf_counter) -> Rates:
    """Take the best of several runs. threads: 0 leaves them to OpenVINO. clock: tells seconds."""
    options = {"PERFORMANCE_HINT": "LATENCY"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    macs: dict[str, dict[str, float]] = {}
    for name in ("int8", "bf16", "f32"):
        if name == "bf16" and "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            continue
        precision = {} if name == "int8" else {"INFERENCE_PRECISION_HINT": name}
        macs[name] = {
            make.__name__: amount(make(name)) / best_seconds(make(name), options | precision, runs, clock)
            for make in (products, convolutions)
        }
    exact = options | {"INFERENCE_PRECISION_HINT": "f32"}
    return Rates(macs, 2 * 4 * COPIED / best_seconds(addition(), exact, runs, clock))


def products(name: str) -> Any:
    """A chain of large matrix products."""
    value = first = ops.parameter([ROWS, WIDTH], np.float32)
    for _ in range(LAYERS):
        value = ops.matmul(ready(value, name), weights((WIDTH, WIDTH), name), False, True)
    return openvino.Model([value], [first])


def convolutions(name: str) -> Any:
    """A chain of large 3x3 convolutions."""
    value = first = ops.parameter([1, CHANNELS, SIDE, SIDE], np.float32)
    for _ in range(LAYERS):
        kernel = weights((CHANNELS, CHANNELS, 3, 3), name)
        value = ops.convolution(ready(value, name), kernel, [1, 1], [1, 1], [1, 1], [1, 1])
    return openvino.Model([value], [first])


def addition() -> Any:
    """One read and one write of more than caches hold."""
    values = ops.parameter([COPIED], np.float32)
    return openvino.Model([ops.add(values, ops.constant(np.float32(1)))], [values])


def amount(model: Any) -> int:
    return sum(each.int8_macs + each.float_macs for each in work_of(model, 4))


def best_seconds(model: Any, options: Mapping[str, Any], runs: int, clock: Clock) -> float:
    """The shortest of several runs, after one that does not count."""
    request = core().compile_model(model, "CPU", dict(options)).create_infer_request()
    generator = np.random.Generator(np.random.PCG64(1))
    request.set_input_tensor(
        openvino.Tensor(generator.standard_normal(tuple(model.input(0).shape), np.float32))
    )
    request.infer()
    times = []
    for _ in range(runs):
        began = clock()
        request.infer()
        times.append(clock() - began)
    return min(times)


def ready(value: Any, name: str) -> Any:
    """Quantize what a product takes, where it is to be done in INT8."""
    if name != "int8":
        return value
    low, high = (ops.constant(np.float32(limit)) for limit in (-1.28, 1.27))
    return ops.fake_quantize(value, low, high, low, high, 256)


def weights(shape: tuple[int, ...], name: str) -> Any:
    """Random weights, as conversion and quantization write them."""
    generator = np.random.Generator(np.random.PCG64(0))
    if name != "int8":
        return ops.constant(generator.standard_normal(shape, np.float32) / np.float32(WIDTH))
    stored = ops.convert(ops.constant(generator.integers(-127, 128, shape).astype(np.int8)), "f32")
    scales = np.full((shape[0], *(1,) * (len(shape) - 1)), 1e-4, np.float32)
    return ops.multiply(stored, ops.constant(scales))
