"""Token merging: a denoiser whose self-attention runs on fewer tokens, as an edit of its graph.

ToMe: Bolya et al. 2022, arXiv 2210.09461; for diffusion: Bolya and Hoffman 2023, arXiv 2303.17604. ToDo:
Smith et al. 2024, arXiv 2402.13573. Counts follow from shapes inside the graph, in whole numbers, so that
one model serves every size and OpenVINO folds them to constants once the shapes are fixed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from ..errors import InvalidRequest
from .attention import SIDE, SelfAttention, find_self_attention, token_counts

if TYPE_CHECKING:
    from .token_matching import Counts

Method = Literal["match", "pool"]
Block = TypeVar("Block")
LARGEST_RATIO = 0.75  # destinations, one in each 2x2 cell of tokens, always stay
LOWEST_LEVEL = 1
"""How often the latents' sides may be halved where tokens merge: SD 1.5's second resolution costs no quality
that could be measured (docs/token-merging.md), and 2 percent of the time."""
SHARING = 3
"""How many blocks share a matching: SD 1.5's longest run. More lose quality in an MMDiT, fewer cost time."""


@dataclass(frozen=True)
class TokenMerging:
    """How tokens are merged.

    ratio: share of the tokens that attention does without, 0 to 0.75, in thousandths. method: "match" merges
    the most similar tokens (ToMe); "pool" averages keys and values over the grid and keeps all queries
    (ToDo). Raises InvalidRequest for other values.
    """

    ratio: float
    method: Method = "match"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ratio) and 0 <= self.ratio <= LARGEST_RATIO):
            raise InvalidRequest(
                f"token merging {self.ratio!r}: must be a share of the tokens from 0 to {LARGEST_RATIO}"
            )
        if self.method not in get_args(Method):
            raise InvalidRequest(f"merging method {self.method!r}: must be match or pool")

    @property
    def thousandths(self) -> int:
        """The ratio times 1000."""
        return round(1000 * self.ratio)

    @property
    def described(self) -> dict[str, Any] | None:
        """What a manifest says of it: None where nothing merges."""
        return {"ratio": self.thousandths / 1000, "method": self.method} if self.thousandths else None

    @property
    def side(self) -> int:
        """What "pool" leaves of each side of the grid, times 1000."""
        return round(1000 * math.sqrt(1 - self.thousandths / 1000))


def merge_tokens(model: Any, ratio: float, method: Method = "match") -> int:
    """Merge tokens in a denoiser's self-attention at its highest resolutions, in place.

    model: an openvino.Model of a UNet or MMDiT, its weights and activations of any precision. Tokens merge
    before queries, keys and values are made of them, and are restored after the output's projection. Where a
    size has too few tokens for the ratio, all are kept that cannot merge: down to one token, nothing fails.
    Returns how many attentions were changed: none for ratio 0. Raises InvalidRequest for a ratio or method
    that TokenMerging refuses, and where the model has no self-attention over a grid.
    """
    merging = TokenMerging(ratio, method)
    if not merging.thousandths:
        return 0
    attentions = find_self_attention(model)
    if not attentions:
        raise InvalidRequest("token merging: the model has no self-attention over a grid; leave it out")
    from .token_matching import Counts

    levels: dict[int, Counts] = {}
    changed = 0
    for count, group in _groups(attentions, token_counts(model, attentions)):
        if count not in levels:
            levels[count] = Counts(group[0].grid)
        if method == "match":
            _match(group, levels[count], merging.thousandths)
        else:
            _pool(group, levels[count], merging.side)
        changed += len(group)
    model.validate_nodes_and_infer_types()
    return changed


def sharing(levels: Sequence[tuple[int, Sequence[Block]]]) -> Iterator[tuple[int, Sequence[Block]]]:
    """Neighbouring blocks of one level that share a matching, SHARING at most, each with its level's number.

    The last block of all has its own, so that reuse between steps can leave out all that is before it.
    """
    for number, (level, blocks) in enumerate(levels):
        shared = len(blocks) - (number == len(levels) - 1)
        for start in range(0, shared, SHARING):
            yield level, blocks[start : min(start + SHARING, shared)]
        if shared < len(blocks):
            yield level, blocks[shared:]


def _groups(attentions: list[SelfAttention], counts: list[int]) -> Iterator[tuple[int, list[SelfAttention]]]:
    """The attentions that merge, by matching, with their number of tokens; counts: of each attention."""
    fewest = min(max(counts), SIDE**2 // 4**LOWEST_LEVEL)
    levels = [
        (count, [list(block) for _, block in groupby((each for each, _ in run), lambda each: each.block)])
        for count, run in groupby(zip(attentions, counts, strict=True), lambda pair: pair[1])
    ]
    for count, blocks in sharing(levels):
        if count >= fewest:
            yield count, [each for block in blocks for each in block]


def _match(group: list[SelfAttention], counts: "Counts", thousandths: int) -> None:
    """Let the attentions run on merged tokens; the first one's decide which merge."""
    from .token_matching import feed, match, merged, restored, split_at

    matching = match(group[0].tokens, counts, thousandths)
    for attention in group:
        tokens = merged(attention.tokens, matching)
        for layer in (attention.queries, attention.keys, attention.values):
            feed(layer, tokens)
        split_at(attention.slices, matching)
        users = attention.out.output(0).get_target_inputs()
        whole = restored(attention.out.output(0), matching)
        for user in users:
            user.replace_source_output(whole.output(0))


def _pool(group: list[SelfAttention], counts: "Counts", side: int) -> None:
    """Let keys and values be made of fewer tokens."""
    from .token_matching import feed, pooled

    for attention in group:
        tokens = pooled(attention.tokens, counts, side)
        for layer in (attention.keys, attention.values):
            feed(layer, tokens)
