"""Group normalization in steps that keep the order of a picture's channels as convolutions leave it.

OpenVINO's CPU plugin keeps activations of convolutions with channels last, in bfloat16 and in 8 bits. Its
group normalization (2026.4) wants channels first: it copies the activation before and after.
"""

from typing import Any

import numpy as np
from openvino import opset13 as ops

SIDES = np.array([2, 3], np.int64)


def unfold_group_norms(model: Any) -> int:
    """Replace every GroupNormalization of pictures, [batch, channels, height, width], in place.

    Channels are centred on their own means first, and the variance of a group is that of its centred channels
    and of their means. So nothing large cancels, and bfloat16 between the steps loses no more than it does
    to the activation itself. Returns how many were replaced.
    """
    found = [op for op in model.get_ordered_ops() if _is_of_pictures(op)]
    for op in found:
        unfolded = _unfolded(op)
        unfolded.set_friendly_name(op.get_friendly_name())
        for port in op.output(0).get_target_inputs():
            port.replace_source_output(unfolded.output(0))
    model.validate_nodes_and_infer_types()
    return len(found)


def _is_of_pictures(op: Any) -> bool:
    if op.get_type_name() != "GroupNormalization":
        return False
    shape = op.get_input_partial_shape(0)
    return bool(shape.rank == 4 and shape[1].is_static)


def _unfolded(op: Any) -> Any:
    attributes = op.get_attributes()
    groups = attributes["num_groups"]
    picture, offset = _without_offset(op.input_value(0))
    means = ops.reduce_mean(picture, SIDES, True)
    centred = ops.subtract(picture, means)
    norms = ops.reduce_l2(centred, SIDES, True)
    spreads = ops.divide(norms, ops.sqrt(_pixels(picture)))  # the standard deviation of each channel

    channels = op.get_input_partial_shape(0)[1].get_length()
    grouped = np.array([0, groups, channels // groups, 1], np.int64)
    means = ops.reshape(means if offset is None else ops.add(means, offset), grouped, True)
    spreads = ops.reshape(spreads, grouped, True)
    aside = ops.subtract(means, _over_group(means))
    variance = _over_group(ops.add(ops.multiply(spreads, spreads), ops.multiply(aside, aside)))
    inverse = ops.power(ops.add(variance, _number(attributes["epsilon"])), _number(-0.5))

    weights, bias = (ops.reshape(op.input_value(port), grouped[1:], False) for port in (1, 2))
    scale = ops.multiply(inverse, weights)
    shift = ops.add(ops.multiply(aside, scale), bias)
    plain = np.array([0, channels, 1, 1], np.int64)
    scaled = ops.multiply(centred, ops.reshape(scale, plain, True))
    return ops.add(scaled, ops.reshape(shift, plain, True))


def _without_offset(picture: Any) -> tuple[Any, Any]:
    """What a number for each channel was added to, and these numbers; None where nothing was.

    A time embedding is added so. Centring takes it away again: there is no need to add it to every pixel.
    """
    node = picture.get_node()
    if node.get_type_name() != "Add" or len(picture.get_target_inputs()) != 1:
        return picture, None
    channels = picture.get_partial_shape()[1]
    for port in (0, 1):
        shape = node.input_value(port).get_partial_shape()
        if shape.rank == 4 and shape[1] == channels and shape[2] == 1 and shape[3] == 1:
            return node.input_value(1 - port), node.input_value(port)
    return picture, None


def _pixels(picture: Any) -> Any:
    """How many there are, float32; a constant once the picture's size is known."""
    sides = ops.gather(ops.shape_of(picture), SIDES, ops.constant(np.int64(0)))
    return ops.convert(ops.reduce_prod(sides, np.array([0], np.int64), False), "f32")


def _over_group(values: Any) -> Any:
    return ops.reduce_mean(values, np.array([2], np.int64), True)


def _number(value: float) -> Any:
    return ops.constant(np.float32(value))
