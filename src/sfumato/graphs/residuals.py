"""The residual stream of a transformer's blocks: where each block adds to it."""

import re
from typing import Any

BLOCK = re.compile(r"\btransformer_blocks\.(\d+)/")
"""A node's friendly name, if it belongs to a block and to none of the modules in it."""


def residual_chains(model: Any) -> dict[tuple[int, int], list[tuple[Any, Any]]]:
    """The residual additions of each block, in order, as (input from before, output).

    By block and stream, as a block adds to one of picture tokens and one of text tokens. A stream begins
    with an addition outside of the blocks (of positions, of a projection's bias); no other addition at the
    level of a block has an addition as its input.
    """
    chains: dict[tuple[int, int], list[tuple[Any, Any]]] = {}
    streams: dict[str, int] = {}
    for node in model.get_ordered_ops():
        found = BLOCK.search(node.get_friendly_name())
        if node.get_type_name() != "Add" or found is None:
            continue
        for port in node.inputs():
            source = port.get_source_output().get_node()
            name = source.get_friendly_name()
            if source.get_type_name() == "Add" and "transformer_blocks." not in name:
                streams.setdefault(name, len(streams))
            if name in streams:
                stream = streams[node.get_friendly_name()] = streams[name]
                chains.setdefault((int(found[1]), stream), []).append((port, node.output(0)))
                break
    return chains
