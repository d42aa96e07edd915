"""The evaluator's networks: an image tower and a text tower into one space (CLIP, Radford et al. 2021)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 128
TOKENS = 16
EMBEDDING = 128


class ImageTower(nn.Module):
    """Residual convolutions over four resolutions, from 32x32 down to 4x4 positions.

    forward: pictures [n, 3, 128, 128] in [-1, 1] -> unit embedding [n, 128], features [n, 256], style logits
    [n, styles], and the four stages' activations [n, channels, positions, positions].
    """

    def __init__(
        self,
        styles: int,
        widths: tuple[int, ...] = (32, 64, 128, 256),
        blocks: tuple[int, ...] = (1, 1, 2, 1),
    ) -> None:
        super().__init__()
        previous = (3, *widths[:-1])
        self.down = nn.ModuleList(
            nn.Conv2d(before, width, 2, 2) if stage else nn.Conv2d(before, width, 8, 4, 2)
            for stage, (before, width) in enumerate(zip(previous, widths, strict=True))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(count)))
            for width, count in zip(widths, blocks, strict=True)
        )
        self.norm = nn.LayerNorm(widths[-1])
        self.embed = nn.Linear(widths[-1], EMBEDDING)
        self.style = nn.Linear(widths[-1], styles)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        layers = []
        for down, stage in zip(self.down, self.stages, strict=True):
            x = stage(down(x))
            layers.append(x)
        features = self.norm(x.float().mean((2, 3)))
        return (
            functional.normalize(self.embed(features).float(), dim=1),
            features,
            self.style(features),
            *layers,
        )


class ResidualBlock(nn.Module):
    """Two normalized 3x3 convolutions beside a shortcut, at first without effect."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        return x + self.scale * y


class TextTower(nn.Module):
    """A small transformer, averaged over the tokens.

    forward: ids [n, 16] int64, mask [n, 16] int64 (1 for tokens, 0 for padding) -> unit embedding [n, 128].
    """

    def __init__(self, vocabulary: int, width: int = 128, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.randn(TOKENS, width) * 0.02)
        self.layers = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.embed = nn.Linear(width, EMBEDDING)
        nn.init.normal_(self.tokens.weight, std=0.1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions
        shown = mask.bool()[:, None, None, :]
        for layer in self.layers:
            x = layer(x, shown)
        weight = mask[:, :, None].float()
        pooled = (self.norm(x).float() * weight).sum(1) / weight.sum(1)
        return functional.normalize(self.embed(pooled).float(), dim=1)


class TransformerBlock(nn.Module):
    """Pre-normalized self-attention and MLP (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, shown: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=shown)
        x = x + self.out(y.transpose(1, 2).reshape(n, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))
