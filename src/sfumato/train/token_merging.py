"""Token merging in diffusers' denoisers, as sfumato.graphs.token_merging does it to their graphs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from sfumato.errors import InvalidRequest
from sfumato.graphs.token_matching import TILE, WINDOW
from sfumato.graphs.token_merging import LOWEST_LEVEL, Method, TokenMerging, sharing

KEY = "token_merging"  # among the keyword arguments that diffusers hands through to attentions


def merging(denoiser: nn.Module, ratio: float, method: Method = "match") -> "Merged":
    """Let a UNet2DConditionModel or SD3Transformer2DModel merge tokens until the returned object is left.

    ratio, method: as for TokenMerging; InvalidRequest otherwise, and for other denoisers. It is a context
    manager, or undone by remove(). Gradients flow through the tokens, not through the choice of which merge;
    with gradient checkpointing, the recomputation uses the choice of the first computation.
    """
    chosen = TokenMerging(ratio, method)
    if isinstance(denoiser, UNet2DConditionModel):
        return Merged(denoiser, chosen, list(_unet_groups(denoiser)), "cross_attention_kwargs", 1)
    if isinstance(denoiser, SD3Transformer2DModel):
        runs = sharing([(0, [_attentions(block) for block in denoiser.transformer_blocks])])
        groups = [_together(blocks) for _, blocks in runs]
        return Merged(denoiser, chosen, groups, "joint_attention_kwargs", denoiser.config.patch_size)
    raise InvalidRequest(f"token merging: {type(denoiser).__name__} is no UNet or SD3 transformer")


class Merged:
    """A denoiser that merges tokens, until remove()."""

    def __init__(
        self, denoiser: nn.Module, chosen: TokenMerging, groups: list[list[nn.Module]], extra: str, patch: int
    ) -> None:
        self._hooks: list[Any] = []
        self._on = True
        if not chosen.thousandths:
            return

        def begin(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
            if not self._on:
                return given, named
            latents: Any = given[0] if given else named.get("sample", named.get("hidden_states"))
            height, width = (int(side) // patch for side in latents.shape[-2:])
            return given, named | {extra: {**(named.get(extra) or {}), KEY: _Run(chosen, (height, width))}}

        self._hooks.append(denoiser.register_forward_pre_hook(begin, with_kwargs=True))
        changed = {attention: number for number, group in enumerate(groups) for attention in group}
        for attention in denoiser.modules():
            if isinstance(attention, Attention):
                self._hooks += _Merge(attention, changed.get(attention), chosen.method).hooks

    def remove(self) -> None:
        """Let the denoiser work on all tokens again."""
        while self._hooks:
            self._hooks.pop().remove()

    @contextmanager
    def off(self) -> Iterator[None]:
        """The denoiser on all tokens for a while."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


@dataclass
class _Matching:
    """As sfumato.graphs.token_matching.Matching."""

    rows: Tensor
    share: Tensor


@dataclass
class _Run:
    """One run of the denoiser: what its attentions share. size: height and width of the finest grid."""

    chosen: TokenMerging
    size: tuple[int, int]
    matchings: dict[int, _Matching] = field(default_factory=dict)

    def grid(self, tokens: int) -> tuple[int, int]:
        """Height and width of the grid that has so many tokens."""
        height, width = self.size
        while height * width > tokens:
            height, width = -(-height // 2), -(-width // 2)
        return height, width

    def matching(self, group: int, tokens: Tensor) -> _Matching:
        if group not in self.matchings:
            grid = _grid(*self.grid(tokens.shape[1]))
            self.matchings[group] = _match(tokens.detach(), grid, self.chosen.thousandths)
        return self.matchings[group]


class _Merge:
    """The hooks around one attention. group: None where it stays as it is."""

    def __init__(self, attention: Any, group: int | None, method: Method) -> None:
        self.group, self.method = group, method
        self.run: _Run | None = None
        self.matching: _Matching | None = None
        self.hooks = [attention.register_forward_pre_hook(self.before, with_kwargs=True)]
        if group is not None and method == "match":
            self.hooks.append(attention.register_forward_hook(self.after))
        elif group is not None:
            for layer in (attention.to_k, attention.to_v):
                self.hooks.append(layer.register_forward_pre_hook(self.pool, prepend=True))

    def before(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        named = dict(named)
        self.run, self.matching = named.pop(KEY, None), None
        if self.run is None or self.group is None or self.method == "pool":
            return given, named
        tokens = given[0] if given else named["hidden_states"]
        self.matching = self.run.matching(self.group, tokens)
        tokens = _merged(tokens, self.matching)
        return (tokens, *given[1:]) if given else given, named if given else named | {"hidden_states": tokens}

    def after(self, _: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
        if self.matching is None:
            return out
        rows = self.matching.rows
        return (_rows(out[0], rows), *out[1:]) if isinstance(out, tuple) else _rows(out, rows)

    def pool(self, _: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.run is None:
            return given
        grid = self.run.grid(given[0].shape[1])
        return (_pooled(given[0], grid, self.run.chosen.side), *given[1:])


def _attentions(block: Any) -> list[nn.Module]:
    return [each for each in (block.attn, getattr(block, "attn2", None)) if each is not None]


def _together(blocks: Sequence[list[nn.Module]]) -> list[nn.Module]:
    return [attention for block in blocks for attention in block]


def _unet_groups(unet: Any) -> Iterator[list[nn.Module]]:
    """The self-attentions that merge, in runs of neighbouring blocks at one resolution."""
    levels: list[tuple[int, list[list[nn.Module]]]] = []
    level = 0
    for block in [*unet.down_blocks, unet.mid_block, *unet.up_blocks]:
        transformers = getattr(block, "attentions", None) or []
        blocks = [[each.attn1] for transformer in transformers for each in transformer.transformer_blocks]
        if blocks and levels and levels[-1][0] == level:
            levels[-1][1].extend(blocks)
        elif blocks:
            levels.append((level, blocks))
        level += bool(getattr(block, "downsamplers", None)) - bool(getattr(block, "upsamplers", None))
    lowest = max(LOWEST_LEVEL, min(level for level, _ in levels))
    for level, run in sharing(levels):
        if level <= lowest:
            yield _together(run)


@dataclass(frozen=True)
class _Grid:
    """As sfumato.graphs.token_matching.Counts, of numbers."""

    cells: int
    is_destination: Tensor
    window_tokens: Tensor
    window_destinations: Tensor
    in_windows: Tensor


@lru_cache(maxsize=64)
def _grid(height: int, width: int) -> _Grid:
    rows, columns = -(-height // 2), -(-width // 2)
    row, column = np.arange(rows)[:, None], np.arange(columns)
    choice = TILE[row % 8, column % 8]
    y = np.minimum(2 * row + choice // 2, height - 1)
    destinations = y * width + np.minimum(2 * column + choice % 2, width - 1)
    down, across = -(-rows // WINDOW), -(-columns // WINDOW)
    high, wide = -(-rows // down), -(-columns // across)
    cells = _windowed((down, across), (high, wide), (rows, columns))
    tokens = _windowed((down, across), (2 * high, 2 * wide), (height, width))
    y, x = np.divmod(np.arange(height * width), width)
    window = y // (2 * high) * across + x // (2 * wide)
    in_windows = (window * 2 * high + y % (2 * high)) * 2 * wide + x % (2 * wide)
    is_destination = np.isin(np.arange(height * width), destinations)
    arrays = (is_destination, tokens, destinations.ravel()[cells], in_windows)
    return _Grid(rows * columns, *(torch.from_numpy(np.ascontiguousarray(each)) for each in arrays))


def _windowed(windows: tuple[int, int], size: tuple[int, int], limit: tuple[int, int]) -> Any:
    """[windows, places in one]: the places of a grid of sides `limit` that windows of a size cover."""
    y, x = (
        np.minimum(np.arange(count * side), most - 1).reshape(count, side)
        for count, side, most in zip(windows, size, limit, strict=True)
    )
    places = y[:, None, :, None] * limit[1] + x[None, :, None, :]
    return places.reshape(windows[0] * windows[1], -1)


@torch.no_grad()
def _match(tokens: Tensor, grid: _Grid, thousandths: int) -> _Matching:
    count = tokens.shape[1]
    device, batch = tokens.device, len(tokens)
    unit = nn.functional.normalize(tokens.float(), dim=-1, eps=1e-6)
    targets = grid.window_destinations.to(device)
    with torch.autocast(device.type, enabled=False):  # small differences decide which are the most similar
        similar = unit[:, grid.window_tokens.to(device)] @ unit[:, targets].transpose(-1, -2)
    score, cell = similar.max(-1)
    best = targets.gather(1, cell.permute(1, 0, 2).flatten(1)).view(len(targets), batch, -1).permute(1, 0, 2)
    places = grid.in_windows.to(device)
    score, best = score.flatten(1)[:, places], best.flatten(1)[:, places]
    score = score.masked_fill(grid.is_destination.to(device), -2.0)
    left = max(count - count * thousandths // 1000, grid.cells)
    order = score.sort(dim=1, stable=True).indices
    position = torch.empty_like(order).scatter_(1, order, torch.arange(count, device=device).expand_as(order))
    into = position.gather(1, best)
    rows = torch.where(position < left, position, into)
    sizes = tokens.new_zeros((batch, left), dtype=torch.float32).scatter_add(1, rows, torch.ones_like(score))
    return _Matching(rows, 1 / sizes.unsqueeze(-1))


def _rows(tokens: Tensor, rows: Tensor) -> Tensor:
    return tokens.gather(1, rows.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def _merged(tokens: Tensor, matching: _Matching) -> Tensor:
    rows = matching.rows.unsqueeze(-1).expand_as(tokens)
    shape = (len(tokens), matching.share.shape[1], tokens.shape[-1])
    sums = tokens.new_zeros(shape, dtype=torch.float32).scatter_add(1, rows, tokens.float())
    return (sums * matching.share).to(tokens.dtype)


def _pooled(tokens: Tensor, grid: tuple[int, int], thousandths: int) -> Tensor:
    rows, columns = (_areas(side, thousandths).to(tokens) for side in grid)
    return torch.einsum("ih,jw,bhwc->bijc", rows, columns, tokens.unflatten(1, grid)).flatten(1, 2)


def _areas(side: int, thousandths: int) -> Tensor:
    fewer = max((side * thousandths + 500) // 1000, 1)
    area, place = np.arange(fewer)[:, None], np.arange(side)
    start, stop = np.maximum(area * side, place * fewer), np.minimum((area + 1) * side, (place + 1) * fewer)
    return torch.from_numpy(np.maximum(stop - start, 0) / side)
