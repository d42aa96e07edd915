"""Self-attention whose products of queries and keys are whole numbers of 8 bits (SageAttention's first half).

Queries and keys are divided by their largest value in each head, found anew at every run, so that nothing has
to be calibrated. Zhang et al. 2024, arXiv 2410.02367; probabilities and values stay as they are, since a
probability of 1/4096 would be rounded to nothing.
"""

from typing import Any

import numpy as np
from openvino import opset13 as ops

from .constants import weight_of

LEAST_TOKENS = 1024
"""Attention on fewer tokens takes too little of a step for its products to matter."""
WIDEST = 160
"""Of heads that gain: the plugin does not fuse an autoencoder's, of 512 channels, in 8 bits."""
LEVELS = 256
LARGEST = 127
TINY = 1e-6
HEADS_FIRST = (0, 2, 1, 3)
HEADS_FIRST_TRANSPOSED = (0, 2, 3, 1)


def round_scores(model: Any, least: int = LEAST_TOKENS) -> int:
    """Let self-attentions of `least` tokens and more multiply queries and keys in 8 bits, in place.

    Keys lose their mean over the tokens first, which shifts a row of scores and changes no probability.
    For processors, and a model whose sizes are set; attention with a mask or a scale of its own, and such as
    joins several streams, stays. Returns how many were changed.
    """
    changed = [op for op in model.get_ordered_ops() if _is_long(op, least) and _rounded(op)]
    model.validate_nodes_and_infer_types()
    return len(changed)


def _is_long(op: Any, least: int) -> bool:
    if op.get_type_name() != "ScaledDotProductAttention" or op.get_input_size() != 3:
        return False
    if op.get_attributes()["causal"]:
        return False
    shapes = [op.get_input_partial_shape(port) for port in (0, 1)]
    return all(shape.is_static and shape.rank == 4 and _gains(shape, least) for shape in shapes)


def _gains(shape: Any, least: int) -> bool:
    return bool(shape[2].get_length() >= least and shape[3].get_length() <= WIDEST)


def _rounded(attention: Any) -> bool:
    queries, keys = (_tokens_first(attention.input_value(port)) for port in (0, 1))
    if queries is None or keys is None:
        return False
    keys = ops.subtract(keys, ops.reduce_mean(keys, np.array([1], np.int64), True))
    queries, largest_query = _in_8_bits(queries)
    keys, largest_key = _in_8_bits(keys)
    products = ops.matmul(_moved(queries, HEADS_FIRST), _moved(keys, HEADS_FIRST_TRANSPOSED), False, False)
    width = attention.get_input_partial_shape(0)[3].get_length()
    unit = ops.multiply(ops.multiply(largest_query, largest_key), ops.constant(np.float32(width**-0.5)))
    probabilities = ops.softmax(ops.multiply(products, _moved(unit, HEADS_FIRST)), -1)
    out = ops.matmul(probabilities, attention.input_value(2), False, False)
    out.set_friendly_name(attention.get_friendly_name())
    for port in attention.output(0).get_target_inputs():
        port.replace_source_output(out.output(0))
    return True


def _tokens_first(heads: Any) -> Any:
    """The output [batch, tokens, heads, width] that an input [batch, heads, tokens, width] was made of."""
    node = heads.get_node()
    order = weight_of(node) if node.get_type_name() == "Transpose" else None
    return node.input_value(0) if order is not None and tuple(order.data) == HEADS_FIRST else None


def _in_8_bits(values: Any) -> tuple[Any, Any]:
    """Values by head as multiples of 1/127, and what to multiply them by, [batch, 1, heads, 1]."""
    largest = ops.reduce_max(ops.abs(values), np.array([1, 3], np.int64), True)
    largest = ops.maximum(largest, ops.constant(np.float32(TINY)))
    limits = [np.full((1, 1, 1, 1), end / LARGEST, np.float32) for end in (-LARGEST - 1, LARGEST)]
    low, high = map(ops.constant, limits)
    return ops.fake_quantize(ops.divide(values, largest), low, high, low, high, LEVELS), largest


def _moved(values: Any, order: tuple[int, ...]) -> Any:
    return ops.transpose(values, np.array(order, np.int64))
