"""Gated feed-forward layers, as T5's, kept apart where OpenVINO would join them to one operation.

On processors with AMX its CPU plugin does so, and divides by zero when it has one thread (a known defect,
not mended as of 2026.4): the process ends without an error.
"""

from typing import Any

import numpy as np
from openvino import opset13 as ops

BOUND = float(np.finfo(np.float32).max)


def part_gated_layers(model: Any) -> int:
    """Bound what each gate is multiplied with by float32's range, in place; returns how many.

    It changes no finite value, and the plugin computes it with the layer before it, but it no longer knows
    the pattern that it joins.
    """
    found = 0
    for product in [op for op in model.get_ordered_ops() if op.get_type_name() == "Multiply"]:
        for factor in product.inputs():
            layer = factor.get_source_output().get_node()
            if _is_gated(layer):
                factor.replace_source_output(ops.clamp(layer, -BOUND, BOUND).output(0))
                found += 1
    return found


def _is_gated(op: Any) -> bool:
    """Whether it is a linear layer without bias, of an input that one other reads: its gate."""
    if op.get_type_name() != "MatMul":
        return False
    readers = [target.get_node() for target in op.input_value(0).get_target_inputs()]
    return [reader.get_type_name() for reader in readers].count("MatMul") == 2
