"""Constants of a graph as arrays."""

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

Floats = NDArray[np.float32]
SMALLEST = 4096  # elements of a constant below which nothing is gained


def weight_of(op: Any, port: int = 1) -> Any:
    """The constant behind an operation's input, if there is one (under a conversion to float32)."""
    source = op.input_value(port).get_node()
    if source.get_type_name() == "Convert":
        source = source.input_value(0).get_node()
    return source if source.get_type_name() == "Constant" else None


def as_float32(constant: Any) -> Floats:
    """A constant's values as float32."""
    values: Floats
    if constant.get_output_element_type(0) == ov.Type.bf16:
        bits = constant.data.view(np.uint16).astype(np.uint32) << 16
        values = bits.view(np.float32).reshape(constant.get_output_shape(0))
    else:
        values = constant.data.astype(np.float32)
    return values


def float16_scales(values: Floats) -> NDArray[np.float16]:
    """Scales that float16 holds, none of them zero."""
    return np.maximum(values, np.finfo(np.float16).tiny).astype(np.float16)
