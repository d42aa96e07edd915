"""A denoiser in two graphs over the same weights: one that tells its deep features, one that takes them.

Deep features change little from one step to the next: DeepCache (Ma et al. 2023, arXiv 2312.00858) for UNets,
the residual of the later blocks for transformers (as in first-block caching).
"""

from typing import Any

import openvino as ov
from openvino import opset13 as ops

from .residuals import residual_chains

FEATURES = "deep_features"


def tell_features(model: Any, depth: int | None = None) -> None:
    """Give a denoiser a further output, FEATURES, in place: what `take_features` of the same depth takes.

    depth: UNets: how many of the last skip connections are outside of the deep part, with all that lies
    between. Transformers: how many of the first blocks. None: see `cheap_depth`. Raises ValueError where
    there are not so many.
    """
    depth = _checked(model, depth)
    if _is_transformer(model):
        inner, outer = _blocks(model, depth)
        features = ops.subtract(outer, inner).output(0)
    else:
        features = _joins(model)[-depth].input_value(0)
    result = ops.result(features)
    result.output(0).get_tensor().set_names({FEATURES})
    model.add_results([result])
    model.validate_nodes_and_infer_types()


def take_features(model: Any, depth: int | None = None) -> None:
    """Make FEATURES an input of a denoiser, in place, and leave out what they come from."""
    depth = _checked(model, depth)
    if _is_transformer(model):
        inner, outer = _blocks(model, depth)
        given = _parameter(outer)
        consumers = outer.get_target_inputs()
        resumed = ops.add(inner, given).output(0)
        for consumer in consumers:
            consumer.replace_source_output(resumed)
    else:
        join = _joins(model)[-depth]
        given = _parameter(join.input_value(0))
        join.input(0).replace_source_output(given.output(0))
    model.add_parameters([given])
    model.validate_nodes_and_infer_types()


def cheap_depth(model: Any) -> int:
    """The largest depth, from 1, at which the rest of a UNet has no attention; 1 of a transformer.

    Attention is dearest where pictures are largest: SD 1.x has it in the outermost blocks, SDXL has not.
    """
    if _is_transformer(model):
        return 1
    rank = {op: number for number, op in enumerate(model.get_ordered_ops())}
    attention = [rank[op] for op in rank if op.get_type_name() == "ScaledDotProductAttention"]
    last = max(attention, default=len(rank))
    return max(1, sum(rank[join] > last for join in _joins(model)))


def most_depth(model: Any) -> int:
    """The largest depth there is; at it nothing is left to be taken."""
    return len(_image_stream(model)) - 1 if _is_transformer(model) else len(_joins(model))


def _parameter(output: Any) -> Any:
    given = ops.parameter(output.get_partial_shape(), ov.Type.f32, name=FEATURES)
    given.output(0).get_tensor().set_names({FEATURES})
    return given


def _is_transformer(model: Any) -> bool:
    return not _joins(model)


def _joins(model: Any) -> list[Any]:
    """Where a UNet joins what comes up, the first input, with a skip connection, in order."""
    return [
        op
        for op in model.get_ordered_ops()
        if op.get_type_name() == "Concat"
        and op.get_output_partial_shape(0).rank.get_length() == 4
        and op.get_attributes()["axis"] in (1, -3)
        and op.get_input_size() == 2
    ]


def _blocks(model: Any, depth: int) -> tuple[Any, Any]:
    """What leaves the block number `depth`, and what leaves the last one, of the tokens of the picture."""
    leaving = _image_stream(model)
    return leaving[depth - 1], leaving[-1]


def _image_stream(model: Any) -> list[Any]:
    """What leaves each block; only the picture's stream goes through all of the last one."""
    chains = residual_chains(model)
    if not chains:
        raise ValueError("the denoiser has neither skip connections nor blocks that can be told apart")
    last = max(block for block, _ in chains)
    stream = max(
        (stream for block, stream in chains if block == last), key=lambda stream: len(chains[last, stream])
    )
    return [chains[block, stream][-1][1] for block in range(last + 1)]


def _checked(model: Any, depth: int | None) -> int:
    most = most_depth(model)
    if depth is None:
        depth = cheap_depth(model)
    if not 1 <= depth <= most:
        raise ValueError(f"depth {depth}: the denoiser has depths 1 to {most}")
    return depth
