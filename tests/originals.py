"""Tensors of models in their original layouts: names and shapes after the published architectures."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, torch.Tensor]
SIZES = {"F16": 2, "BF16": 2, "F8_E4M3": 1, "F32": 4}


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def layer(name: str, outputs: int, inputs: int, kernel: int | None = None, *, bias: bool = True) -> Shapes:
    ones = () if kernel is None else (kernel, kernel)
    return {f"{name}.weight": (outputs, inputs, *ones)} | ({f"{name}.bias": (outputs,)} if bias else {})


def resblock(name: str, inputs: int, outputs: int, time: int) -> Shapes:
    skip = {} if inputs == outputs else layer("skip_connection", outputs, inputs, 1)
    return prefixed(
        f"{name}.",
        norm("in_layers.0", inputs)
        | layer("in_layers.2", outputs, inputs, 3)
        | layer("emb_layers.1", outputs, time)
        | norm("out_layers.0", outputs)
        | layer("out_layers.3", outputs, outputs, 3)
        | skip,
    )


def transformer(name: str, width: int, depth: int, context: int, *, linear: bool) -> Shapes:
    kernel = None if linear else 1
    shapes = norm("norm", width) | layer("proj_in", width, width, kernel)
    shapes |= layer("proj_out", width, width, kernel)
    for n in range(depth):
        block: Shapes = {}
        for attention, keys in (("attn1", width), ("attn2", context)):
            block |= layer(f"{attention}.to_q", width, width, bias=False)
            block |= layer(f"{attention}.to_k", width, keys, bias=False)
            block |= layer(f"{attention}.to_v", width, keys, bias=False)
            block |= layer(f"{attention}.to_out.0", width, width)
        block |= layer("ff.net.0.proj", 8 * width, width) | layer("ff.net.2", width, 4 * width)
        block |= norm("norm1", width) | norm("norm2", width) | norm("norm3", width)
        shapes |= prefixed(f"transformer_blocks.{n}.", block)
    return prefixed(f"{name}.", shapes)


def unet(
    width: int,
    factors: Sequence[int],
    depths: Sequence[int | Sequence[int]],
    context: int,
    *,
    linear: bool,
    up: Sequence[Sequence[int]] | None = None,
    middle: int | None = None,
    sizes: int | None = None,
    layers: int = 2,
    inputs: int = 4,
) -> Shapes:
    """depths: transformer blocks by level downwards; up: upwards, the mirror image by default.

    middle: those in the middle; -1 for a lone residual block.
    """
    down = [[each] * layers if isinstance(each, int) else list(each) for each in depths]
    up = up or [[each[0]] * (layers + 1) for each in reversed(down)]
    middle = down[-1][-1] or 1 if middle is None else middle
    time, channels = 4 * width, width
    shapes = layer("time_embed.0", time, width) | layer("time_embed.2", time, time)
    if sizes is not None:
        shapes |= layer("label_emb.0.0", time, sizes) | layer("label_emb.0.2", time, time)
    shapes |= layer("input_blocks.0.0", width, inputs, 3)
    skips, number = [width], 1
    for level, factor in enumerate(factors):
        for depth in down[level]:
            shapes |= resblock(f"input_blocks.{number}.0", channels, factor * width, time)
            channels = factor * width
            if depth:
                shapes |= transformer(f"input_blocks.{number}.1", channels, depth, context, linear=linear)
            skips.append(channels)
            number += 1
        if level < len(factors) - 1:
            shapes |= layer(f"input_blocks.{number}.0.op", channels, channels, 3)
            skips.append(channels)
            number += 1
    shapes |= resblock("middle_block.0", channels, channels, time)
    if middle >= 0:
        shapes |= transformer("middle_block.1", channels, middle, context, linear=linear)
        shapes |= resblock("middle_block.2", channels, channels, time)
    number = 0
    for level, factor in reversed(list(enumerate(factors))):
        row = up[len(factors) - 1 - level]
        for place, depth in enumerate(row):
            name = f"output_blocks.{number}"
            shapes |= resblock(f"{name}.0", channels + skips.pop(), factor * width, time)
            channels = factor * width
            if depth:
                shapes |= transformer(f"{name}.1", channels, depth, context, linear=linear)
            if level and place == len(row) - 1:
                shapes |= layer(f"{name}.{2 if depth else 1}.conv", channels, channels, 3)
            number += 1
    return shapes | norm("out.0", width) | layer("out.2", 4, width, 3)


def vae_block(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = norm("norm1", inputs) | layer("conv1", outputs, inputs, 3)
    shapes |= norm("norm2", outputs) | layer("conv2", outputs, outputs, 3)
    if inputs != outputs:
        shapes |= layer("nin_shortcut", outputs, inputs, 1)
    return prefixed(f"{name}.", shapes)


def vae_middle(width: int) -> Shapes:
    shapes = vae_block("mid.block_1", width, width) | vae_block("mid.block_2", width, width)
    shapes |= norm("mid.attn_1.norm", width)
    for name in ("q", "k", "v", "proj_out"):
        shapes |= layer(f"mid.attn_1.{name}", width, width, 1)
    return shapes


def vae(width: int, factors: Sequence[int], latents: int, *, quant: bool = True, layers: int = 2) -> Shapes:
    widths = [factor * width for factor in factors]
    encoder, channels = layer("conv_in", width, 3, 3), width
    for level, outputs in enumerate(widths):
        for n in range(layers):
            encoder |= vae_block(f"down.{level}.block.{n}", channels, outputs)
            channels = outputs
        if level < len(widths) - 1:
            encoder |= layer(f"down.{level}.downsample.conv", channels, channels, 3)
    encoder |= vae_middle(channels) | norm("norm_out", channels)
    encoder |= layer("conv_out", 2 * latents, channels, 3)
    decoder = layer("conv_in", channels, latents, 3) | vae_middle(channels)
    for level in reversed(range(len(widths))):
        for n in range(layers + 1):
            decoder |= vae_block(f"up.{level}.block.{n}", channels, widths[level])
            channels = widths[level]
        if level:
            decoder |= layer(f"up.{level}.upsample.conv", channels, channels, 3)
    decoder |= norm("norm_out", channels) | layer("conv_out", 3, channels, 3)
    shapes = prefixed("encoder.", encoder) | prefixed("decoder.", decoder)
    if quant:
        shapes |= layer("quant_conv", 2 * latents, 2 * latents, 1)
        shapes |= layer("post_quant_conv", latents, latents, 1)
    return shapes


def clip(
    width: int,
    layers: int,
    *,
    vocabulary: int = 49408,
    tokens: int = 77,
    inner: int = 4,
    project: bool = False,
) -> Shapes:
    """CLIP in transformers' names."""
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (vocabulary, width),
        "embeddings.position_embedding.weight": (tokens, width),
    }
    for n in range(layers):
        block = norm("layer_norm1", width) | norm("layer_norm2", width)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            block |= layer(f"self_attn.{name}", width, width)
        block |= layer("mlp.fc1", inner * width, width) | layer("mlp.fc2", width, inner * width)
        shapes |= prefixed(f"encoder.layers.{n}.", block)
    shapes = prefixed("text_model.", shapes | norm("final_layer_norm", width))
    return shapes | ({"text_projection.weight": (width, width)} if project else {})


def open_clip(
    width: int, layers: int, *, vocabulary: int = 49408, tokens: int = 77, inner: int = 4
) -> Shapes:
    shapes: Shapes = {
        "token_embedding.weight": (vocabulary, width),
        "positional_embedding": (tokens, width),
        "text_projection": (width, width),
        "logit_scale": (),
    }
    for n in range(layers):
        block: Shapes = {"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,)}
        block |= layer("attn.out_proj", width, width) | norm("ln_1", width) | norm("ln_2", width)
        block |= layer("mlp.c_fc", inner * width, width) | layer("mlp.c_proj", width, inner * width)
        shapes |= prefixed(f"transformer.resblocks.{n}.", block)
    return shapes | norm("ln_final", width)


def t5(width: int, layers: int, heads: int, *, inner: int, vocabulary: int = 32128, head: int = 64) -> Shapes:
    shapes: Shapes = {"shared.weight": (vocabulary, width), "encoder.final_layer_norm.weight": (width,)}
    for n in range(layers):
        attention = f"encoder.block.{n}.layer.0"
        for name in ("q", "k", "v"):
            shapes[f"{attention}.SelfAttention.{name}.weight"] = (heads * head, width)
        shapes[f"{attention}.SelfAttention.o.weight"] = (width, heads * head)
        shapes[f"{attention}.layer_norm.weight"] = (width,)
        feed = f"encoder.block.{n}.layer.1"
        for name in ("wi_0", "wi_1"):
            shapes[f"{feed}.DenseReluDense.{name}.weight"] = (inner, width)
        shapes[f"{feed}.DenseReluDense.wo.weight"] = (width, inner)
        shapes[f"{feed}.layer_norm.weight"] = (width,)
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return shapes | {bias: (32, heads)}


def mmdit(
    layers: int,
    heads: int,
    table: int,
    *,
    context: int = 4096,
    pooled: int = 2048,
    dual: int = 0,
    qk: bool = False,
) -> Shapes:
    """dual: so many first blocks attend twice."""
    width = 64 * heads
    shapes: Shapes = {"pos_embed": (1, table**2, width)}
    shapes |= layer("x_embedder.proj", width, 16, 2) | layer("context_embedder", width, context)
    for name, inputs in (("t_embedder", 256), ("y_embedder", pooled)):
        shapes |= layer(f"{name}.mlp.0", width, inputs) | layer(f"{name}.mlp.2", width, width)
    for n in range(layers):
        last = n == layers - 1
        for stream in ("x_block", "context_block"):
            x = stream == "x_block"
            block: Shapes = {}
            for attention in ("attn", "attn2") if x and n < dual else ("attn",):
                block |= layer(f"{attention}.qkv", 3 * width, width)
                if qk:
                    block |= {f"{attention}.ln_{each}.weight": (64,) for each in "qk"}
                if x or not last:
                    block |= layer(f"{attention}.proj", width, width)
            if x or not last:
                block |= layer("mlp.fc1", 4 * width, width) | layer("mlp.fc2", width, 4 * width)
            chunks = (9 if n < dual else 6) if x else (2 if last else 6)
            block |= layer("adaLN_modulation.1", chunks * width, width)
            shapes |= prefixed(f"joint_blocks.{n}.{stream}.", block)
    shapes |= layer("final_layer.linear", 64, width)
    return shapes | layer("final_layer.adaLN_modulation.1", 2 * width, width)


def random(shapes: Shapes, seed: int = 0) -> Tensors:
    """Norms about 1, biases about 0, matrices of variance 1 / inputs."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) < 2:
            values = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
        else:
            values /= math.sqrt(math.prod(shape[1:]))
        tensors[name] = values
    return tensors


def write(path: Path, tensors: Tensors, **metadata: str) -> Path:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata or None)
    return path


def write_hollow(path: Path, shapes: Shapes, dtype: str = "F16", **metadata: str) -> Path:
    """A safetensors file of any size with no blocks on the disk: a header, and a hole for the weights."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + SIZES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path
