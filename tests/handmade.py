"""Small OpenVINO graphs made by hand, and what NumPy says that their layers give."""

import re
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from sfumato.optimize.observe import Statistics


def parameter(name, *shape):
    node = ops.parameter(list(shape), np.float32, name=name)
    node.output(0).get_tensor().set_names({name})
    return node


def linear(x, weights, bias=None, name=None):
    """weights: [outputs, inputs]; bias: [outputs]."""
    node = ops.matmul(x, ops.constant(weights), False, True)
    if name:
        node.set_friendly_name(name)
    return node if bias is None else ops.add(node, ops.constant(bias.reshape(1, 1, -1)))


def convolution(x, weights, bias=None, name=None):
    """weights: [outputs, inputs, height, width], with padding that keeps the size; bias: [outputs]."""
    pads = [weights.shape[2] // 2, weights.shape[3] // 2]
    node = ops.convolution(x, ops.constant(weights), [1, 1], pads, pads, [1, 1])
    if name:
        node.set_friendly_name(name)
    return node if bias is None else ops.add(node, ops.constant(bias.reshape(1, -1, 1, 1)))


def model(inputs, outputs):
    """outputs: name -> node."""
    for name, node in outputs.items():
        node.output(0).get_tensor().set_names({name})
    return ov.Model([ops.result(node) for node in outputs.values()], inputs, "handmade")


def compiled(graph, precision="f32"):
    return ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": precision, "PERF_COUNT": True})


def infer(graph, **inputs):
    """The outputs by name, in float32 arithmetic."""
    results = compiled(graph).create_infer_request().infer(inputs)
    return {name: np.array(results[name]) for port in graph.outputs for name in port.get_names()}


def kernels(graph, kinds=("FullyConnected", "MatMul", "Convolution"), **inputs):
    """Names of the kernels that a processor takes for layers of these kinds, such as `brgemm_avx512_I8`."""
    request = compiled(graph).create_infer_request()
    request.infer(inputs)
    return [info.exec_type for info in request.profiling_info if info.node_type in kinds]


def has_vnni():
    """Whether this processor multiplies 8-bit integers at once."""
    info = Path("/proc/cpuinfo")
    return info.exists() and re.search(r"avx512_vnni|avx_vnni|amx_int8", info.read_text()) is not None


def convolved(x, weights):
    """NumPy's convolution of [batch, channels, height, width] with odd kernels, the size kept by zeros."""
    high, wide = (side // 2 for side in weights.shape[2:])
    padded = np.pad(x, ((0, 0), (0, 0), (high, high), (wide, wide)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weights.shape[2:], axis=(2, 3))
    return np.einsum("ncyxhw,ochw->noyx", windows, weights, optimize=True)


def rows(x, axis):
    """An activation as [tokens or pixels, channels]."""
    return np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])


def statistics(seen):
    """Of rows [n, channels], all of them kept."""
    return Statistics(seen.min(0), seen.max(0), seen.mean(0), np.square(seen).mean(0), seen, 1)


def operations(graph, kind):
    return [op for op in graph.get_ordered_ops() if op.get_type_name() == kind]
