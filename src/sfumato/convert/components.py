"""Exporting networks to OpenVINO IR with the tensor names that OpenVINO GenAI and Optimum expect."""

# mypy: disable-error-code="misc"
# torch is not followed by the type checker, so its modules count as subclasses of Any.

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov
import torch
from openvino.frontend.pytorch import patch_model
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn

from ..graphs.compress import Scheme, compress, to_float16
from ..graphs.ir import save_ir
from ..graphs.token_merging import TokenMerging, merge_tokens
from . import Storage
from .defaults import vae_factor
from .positions import split_positions

DYNAMIC = -1
WHOLE = TokenMerging(0.0)


@dataclass(frozen=True)
class Export:
    """How a network is traced: a module with explicit arguments and tuple results, and its tensors.

    inputs: name -> (example, shape with -1 where dynamic), in order. outputs: names, in order.
    """

    module: nn.Module
    inputs: dict[str, tuple[Tensor, tuple[int, ...]]]
    outputs: tuple[str, ...]


class Convolution16(nn.Module):
    """A convolution whose 16-bit weights are widened in the graph, not in memory."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        # Plain tensors: OpenVINO's preparation widens parameters of modules that it does not know.
        self.__dict__ |= {
            "weight": convolution.weight.data,
            "bias": None if convolution.bias is None else convolution.bias.data,
        }
        self.options = {
            name: getattr(convolution, name) for name in ("stride", "padding", "dilation", "groups")
        }

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.conv2d(x, self.weight.to(x.dtype), bias, **self.options)


class ClipText(nn.Module):
    """A CLIP text encoder with its hidden states spelled out (transformers captures them in hooks)."""

    def __init__(self, encoder: nn.Module, first: tuple[str, str]) -> None:
        super().__init__()
        self.encoder = encoder
        self.first = first

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        out = self.encoder(input_ids=input_ids, output_hidden_states=True, return_dict=True)
        return (*(out[name] for name in self.first), *out.hidden_states)


class T5Text(nn.Module):
    """A T5 encoder without an attention mask, as Stable Diffusion 3 uses it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.encoder(input_ids=input_ids, return_dict=True).last_hidden_state,)


class UNet(nn.Module):
    """A UNet with the inputs of Stable Diffusion 1.x and 2.x."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
    ) -> tuple[Tensor]:
        out = self.unet(
            sample, timestep, encoder_hidden_states, timestep_cond=timestep_cond, return_dict=False
        )
        return (out[0],)


class UNetXL(nn.Module):
    """A UNet with SDXL's pooled text and picture sizes as further inputs."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
        timestep_cond: Tensor | None = None,
    ) -> tuple[Tensor]:
        out = self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=timestep_cond,
            added_cond_kwargs={"text_embeds": text_embeds, "time_ids": time_ids},
            return_dict=False,
        )
        return (out[0],)


class MMDiT(nn.Module):
    """Stable Diffusion 3's transformer."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
    ) -> tuple[Tensor]:
        out = self.transformer(
            hidden_states, encoder_hidden_states, pooled_projections, timestep, return_dict=False
        )
        return (out[0],)


class VaeEncoder(nn.Module):
    """Picture in [-1, 1] to the mean and log-variance of its unscaled latents."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, sample: Tensor) -> tuple[Tensor]:
        moments = self.encoder(sample)
        return (moments if self.quant_conv is None else self.quant_conv(moments),)


class VaeDecoder(nn.Module):
    """Unscaled latents to a picture in [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        if self.post_quant_conv is not None:
            latent_sample = self.post_quant_conv(latent_sample)
        return (self.decoder(latent_sample),)


class TinyDecoder(nn.Module):
    """Unscaled latents to a picture in [-1, 1] by a decoder of scaled ones (see `convert.tiny_decoder`)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.decoder = vae.decoder
        self.scale, self.shift = vae.config.scaling_factor, vae.config.shift_factor

    def forward(self, latent_sample: Tensor) -> tuple[Tensor]:
        return (self.decoder((latent_sample - self.shift) * self.scale),)


def export_of(kind: str, module: Any) -> Export:
    """How a network of this kind is exported."""
    return _EXPORTS[kind](module)


def export(
    kind: str,
    module: nn.Module,
    xml: Path,
    stored: Storage,
    let_go: Callable[[], None],
    merging: TokenMerging = WHOLE,
) -> None:
    """Trace `module` and write `xml` and its `.bin`, with weights as `stored` says.

    fp16: 16 bits. fp32: as they are. int8, int4, nf4: those of linear layers in so many bits (but for the
    autoencoder's, which has few), the others in 16. 16-bit linear and embedding weights stay 16-bit and where
    they are while tracing. The module is not usable afterwards.
    let_go: called now and then, to give back pages of mapped weights. merging: of a denoiser's tokens.
    """
    if kind == "mmdit":
        split_positions(module)
    described = export_of(kind, module)
    _keep_16bit(described.module)
    model = trace(described)
    if stored != "fp16" and stored != "fp32" and not kind.startswith("vae"):
        compress(model, Scheme(stored, vectors=stored == "nf4"), let_go)
    if stored != "fp32":
        to_float16(model, let_go)
    merge_tokens(model, merging.ratio, merging.method)
    save_ir(model, xml)
    del model
    release_memory()


def release_memory() -> None:
    """Drop what torch's tracer and the collector still hold of a network that is done with."""
    torch._C._jit_clear_class_registry()
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
    torch.jit._state._clear_class_state()
    gc.collect()


def _keep_16bit(module: nn.Module) -> None:
    """Make a module traceable, in float32, with the 16-bit weights that it may have."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Conv2d and child.weight.dtype in (torch.float16, torch.bfloat16):
                setattr(parent, name, Convolution16(child))
    if any(weight.dtype in (torch.float16, torch.bfloat16) for weight in module.parameters()):
        # Name-mangled on purpose in openvino 2026.4; Optimum calls it too.
        getattr(patch_model, "__make_16bit_traceable")(module)


def trace(described: Export) -> ov.Model:
    """The graph of a network, over the module's own weights, with the names that its tensors are to have."""
    examples = {name: example for name, (example, _) in described.inputs.items()}
    with torch.no_grad():
        decoder = TorchScriptPythonDecoder(
            described.module, example_input=examples, trace_kwargs={"check_trace": False}
        )
        model = ov.convert_model(
            decoder,
            example_input=examples,
            input=[(name, ov.PartialShape(list(shape))) for name, (_, shape) in described.inputs.items()],
        )
    for port, name in zip(model.inputs, described.inputs, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, described.outputs, strict=True):
        port.get_tensor().set_names({name})
    return model


def _tokens(module: Any) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    length = min(16, getattr(module.config, "max_position_embeddings", 16))
    return {"input_ids": (torch.ones(2, length, dtype=torch.int64), (DYNAMIC, DYNAMIC))}


def _hidden_states(module: Any) -> tuple[str, ...]:
    return tuple(f"hidden_states.{i}" for i in range(module.config.num_hidden_layers + 1))


def _clip(module: Any) -> Export:
    names = ("last_hidden_state", "pooler_output")
    return Export(ClipText(module, names), _tokens(module), (*names, *_hidden_states(module)))


def _clip_projection(module: Any) -> Export:
    names = ("text_embeds", "last_hidden_state")
    return Export(ClipText(module, names), _tokens(module), (*names, *_hidden_states(module)))


def _t5(module: Any) -> Export:
    return Export(T5Text(module), _tokens(module), ("last_hidden_state",))


def _unet(module: Any) -> Export:
    config = module.config
    xl = config.addition_embed_type == "text_time"
    # Odd sides make the UNet pass sizes to its upsamplers, which keeps every size dynamic in the graph.
    # OpenVINO GenAI feeds int64 timesteps to UNets; the graph turns them into float32 at once.
    inputs = {
        "sample": (
            torch.randn(2, config.in_channels, 15, 17),
            (DYNAMIC, config.in_channels, DYNAMIC, DYNAMIC),
        ),
        "timestep": (torch.tensor([1], dtype=torch.int64), (DYNAMIC,)),
        "encoder_hidden_states": _states(config.cross_attention_dim),
    }
    if xl:
        features, width = module.add_embedding.linear_1.in_features, config.addition_time_embed_dim
        count = _time_ids(config)
        inputs["text_embeds"] = _rows(features - count * width)
        inputs["time_ids"] = _rows(count)
    if config.time_cond_proj_dim is not None:
        inputs["timestep_cond"] = _rows(config.time_cond_proj_dim)
    return Export(UNetXL(module) if xl else UNet(module), inputs, ("out_sample",))


def _time_ids(config: Any) -> int:
    """Base models get six sizes, the refiner five: it attends to the encoder whose pooled text it has."""
    five = 5 * config.addition_time_embed_dim
    return 5 if config.projection_class_embeddings_input_dim - five == config.cross_attention_dim else 6


def _mmdit(module: Any) -> Export:
    config = module.config
    side = 2 * config.patch_size
    inputs = {
        "hidden_states": (
            torch.randn(2, config.in_channels, side, side + config.patch_size),
            (DYNAMIC, config.in_channels, DYNAMIC, DYNAMIC),
        ),
        "encoder_hidden_states": _states(config.joint_attention_dim),
        "pooled_projections": _rows(config.pooled_projection_dim),
        "timestep": (torch.tensor([1.5, 2.5]), (DYNAMIC,)),
    }
    return Export(MMDiT(module), inputs, ("out_sample",))


def _vae_encoder(module: Any) -> Export:
    side = 8 * vae_factor(module.config)
    channels = module.config.in_channels
    sample = (torch.randn(1, channels, side, side), (DYNAMIC, channels, DYNAMIC, DYNAMIC))
    return Export(VaeEncoder(module), {"sample": sample}, ("latent_parameters",))


def _vae_decoder(module: Any) -> Export:
    channels = module.config.latent_channels
    sample = (torch.randn(1, channels, 8, 8), (DYNAMIC, channels, DYNAMIC, DYNAMIC))
    decoder = _DECODERS[type(module).__name__](module)
    return Export(decoder, {"latent_sample": sample}, ("sample",))


def _states(width: int) -> tuple[Tensor, tuple[int, ...]]:
    return torch.randn(2, 7, width), (DYNAMIC, DYNAMIC, width)


def _rows(width: int) -> tuple[Tensor, tuple[int, ...]]:
    return torch.randn(2, width), (DYNAMIC, width)


_DECODERS: dict[str, Callable[[Any], nn.Module]] = {
    "AutoencoderKL": VaeDecoder,
    "AutoencoderTiny": TinyDecoder,
}
_EXPORTS: dict[str, Callable[[Any], Export]] = {
    "clip": _clip,
    "clip_projection": _clip_projection,
    "t5": _t5,
    "unet": _unet,
    "mmdit": _mmdit,
    "vae_encoder": _vae_encoder,
    "vae_decoder": _vae_decoder,
}
