"""SD3's table of positions as the two small ones that it is made of."""

# mypy: disable-error-code="misc"
# torch is not followed by the type checker, so its modules count as subclasses of Any.

from typing import Any

import torch
from torch import Tensor, nn


def split_positions(transformer: Any) -> None:
    """Let an SD3Transformer2DModel add the positions of columns and rows, if its table consists of them.

    The table is no weight but sines and cosines of a patch's column, and then of its row, for every place
    there is: 113 MB in 16 bits in SD3 Medium, 453 MB in SD3.5 Medium, and twice that where an engine widens
    it. A table of another kind stays.
    """
    embed = transformer.pos_embed
    if embed.pos_embed_max_size and embed.norm is None and embed.flatten:
        halves = _halves(embed.pos_embed[0].unflatten(0, (embed.pos_embed_max_size, -1)))
        if halves is not None:
            transformer.pos_embed = PatchEmbed(embed.proj, *halves)


class PatchEmbed(nn.Module):
    """Patches of latents with their positions, counted from the middle of the table.

    columns, rows: what positions add to the first and to the second half of a patch's features, both
    [side, features / 2], for up to `side` patches each way.
    """

    def __init__(self, proj: nn.Module, columns: Tensor, rows: Tensor) -> None:
        super().__init__()
        self.proj = proj
        self.register_buffer("columns", columns)
        self.register_buffer("rows", rows)

    def forward(self, latents: Tensor) -> Tensor:
        """[batch, height x width, features] of latents [batch, channels, ...] of height x width patches."""
        patches: Tensor = self.proj(latents)
        height, width = patches.shape[-2:]
        columns = _middle(self.columns, width).unsqueeze(0).expand(height, -1, -1)
        rows = _middle(self.rows, height).unsqueeze(1).expand(-1, width, -1)
        positions = torch.cat([columns, rows], dim=-1).flatten(0, 1)
        return patches.flatten(2).transpose(1, 2) + positions


def _middle(table: Tensor, count: int) -> Tensor:
    begin = (table.shape[0] - count) // 2
    return table[begin : begin + count]


def _halves(table: Tensor) -> tuple[Tensor, Tensor] | None:
    """Columns' and rows' tables, if [rows, columns, features] holds the same for each column and row."""
    half = table.shape[-1] // 2
    columns, rows = table[0, :, :half].clone(), table[:, 0, half:].clone()
    for row, line in zip(rows, table, strict=True):
        first, second = line.split(half, dim=-1)
        if not torch.equal(first, columns) or not torch.equal(second, row.expand_as(second)):
            return None
    return columns, rows
