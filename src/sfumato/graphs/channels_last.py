"""A graph in the order in which processors compute convolutions: the channels of a pixel side by side.

OpenVINO's CPU plugin (2026.4) chooses orders one operation after the other, and copies activations between
two that differ. Where copies can be avoided, the graph is made to avoid them; what it computes stays.
"""

from typing import Any

import numpy as np
from openvino import opset13 as ops

from .constants import weight_of
from .group_norms import unfold_group_norms

TO_CHANNELS_FIRST = (0, 3, 1, 2)


def keep_channels_last(model: Any) -> None:
    """Spare a network of pictures the copies between channels first and channels last, in place.

    For processors alone: other devices have kernels of their own for group normalization.
    """
    unfold_group_norms(model)
    quantize_before_transposes(model)


def quantize_before_transposes(model: Any) -> int:
    """Round to 8 bits before tokens become a picture again rather than after, in place.

    A convolution takes its rounded input with channels last, as the tokens are: then nothing is moved.
    Returns how many FakeQuantize were exchanged with the Transpose before them.
    """
    found = [op for op in model.get_ordered_ops() if op.get_type_name() == "FakeQuantize"]
    moved = [op for op in found if _moved(op)]
    model.validate_nodes_and_infer_types()
    return len(moved)


def _moved(quantizer: Any) -> bool:
    transpose = quantizer.input_value(0).get_node()
    scales = _scales(quantizer)
    if not _to_channels_first(transpose) or scales is None:
        return False
    tokens = transpose.input_value(0)
    if (scales != 1).any():
        tokens = ops.multiply(tokens, ops.constant(scales))
    low, high = (ops.constant(_limit(quantizer, port).reshape(1, 1, 1, 1)) for port in (3, 4))
    levels = quantizer.get_attributes()["levels"]
    rounded = ops.fake_quantize(tokens, low, high, low, high, levels)
    rounded.set_friendly_name(quantizer.get_friendly_name())
    readers = quantizer.output(0).get_target_inputs()
    picture = ops.transpose(rounded, np.array(TO_CHANNELS_FIRST, np.int64))
    for port in readers:
        port.replace_source_output(picture.output(0))
    return True


def _to_channels_first(node: Any) -> bool:
    if node.get_type_name() != "Transpose":
        return False
    order = weight_of(node)
    return order is not None and tuple(order.data) == TO_CHANNELS_FIRST


def _scales(quantizer: Any) -> Any:
    """What each channel is multiplied by as it is rounded, [1, 1, 1, channels or 1]; None if that is not all.

    One grid for all channels is meant, with limits of the input that may differ by channel.
    """
    if any(weight_of(quantizer, port) is None for port in (1, 2, 3, 4)):
        return None
    low, high, stored_low, stored_high = (_limit(quantizer, port) for port in (1, 2, 3, 4))
    by_channel = low.ndim == 4 and low.size == low.shape[1]
    if (
        low.shape != high.shape
        or not (low.size == 1 or by_channel)
        or stored_low.size * stored_high.size != 1
    ):
        return None
    if (high <= low).any():
        return None
    scales = (stored_high - stored_low) / (high - low)
    proportional = np.allclose(low * scales, stored_low, atol=1e-5 * float((stored_high - stored_low).max()))
    return scales.reshape(1, 1, 1, -1) if proportional else None


def _limit(quantizer: Any, port: int) -> Any:
    return weight_of(quantizer, port).data.astype(np.float32)
