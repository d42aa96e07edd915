"""The checkpoint that is distilled."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from sfumato.convert.checkpoints import Checkpoint, open_checkpoint
from sfumato.convert.defaults import conditioning, guidance_embedding_dim, sampling, takes_mask
from sfumato.errors import InvalidRequest
from sfumato.families import Family
from sfumato.train.embedded.group_norm import use_channels_last


@dataclass(frozen=True)
class Source:
    """A diffusers pipeline in float32 with every weight frozen.

    guidance: the checkpoint's own. prediction: epsilon, v_prediction or flow. t5_tokens: length of SD3's T5
    part of the context, else 0.
    """

    family: Family
    pipe: Any
    guidance: float
    prediction: str
    t5_tokens: int

    @property
    def denoiser(self) -> Any:
        """The UNet or MMDiT."""
        return getattr(self.pipe, self.family.denoiser)

    @property
    def side(self) -> int:
        """Of the square pictures, in pixels, that the checkpoint was made for."""
        return int(self.denoiser.config.sample_size * self.pipe.vae_scale_factor)

    def encoders(self) -> list[torch.nn.Module]:
        """The text encoders that the checkpoint has."""
        names = [part.name for part in self.family.components if part.tokenizer]
        return [encoder for name in names if (encoder := getattr(self.pipe, name)) is not None]

    def encode(self, prompts: list[str], side: int, device: torch.device) -> dict[str, Any]:
        """The denoiser's inputs besides latents and timestep, for pictures of `side` pixels."""
        return CONDITIONING[self.family.name](self, prompts, side, device)

    def grid(self, prompts: list[str], steps: int, guidance: float) -> Image.Image:
        """Pictures of the prompts side by side, made one by one by diffusers' pipeline as it is now."""
        options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}
        if self.t5_tokens:
            options["max_sequence_length"] = self.t5_tokens
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad(), torch.autocast(self.denoiser.device.type, torch.bfloat16):
            pictures = [self.pipe(each, generator=generator, **options).images[0] for each in prompts]
        return Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures], axis=1))

    def encode_nothing(self, count: int, side: int, device: torch.device) -> dict[str, Any]:
        """The denoiser's inputs for `count` absent negative prompts; zeros where the checkpoint has it so."""
        condition = self.encode([""] * count, side, device)
        if getattr(self.pipe.config, "force_zeros_for_empty_prompt", False):
            condition["encoder_hidden_states"] = torch.zeros_like(condition["encoder_hidden_states"])
            added = condition["added_cond_kwargs"]
            added["text_embeds"] = torch.zeros_like(added["text_embeds"])
        return condition


def open_source(folder: Path) -> Source:
    """Load a diffusers folder.

    Raises CheckpointError where it is none, or of an unknown family; InvalidRequest for a model that begins
    with a picture.
    """
    checkpoint = open_checkpoint(folder)
    _check(checkpoint)
    for library in (diffusers, transformers):  # both warn of every caption that is cut
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    pipeline_class = getattr(diffusers, checkpoint.family.pipeline_classes[0])
    present = {*checkpoint.parts, *checkpoint.tokenizers}
    texts = {
        name
        for part in checkpoint.family.components
        if part.tokenizer
        for name in (part.name, part.tokenizer)
    }
    left_out: dict[str, Any] = dict.fromkeys(texts - present)
    if checkpoint.family.name == "sd":
        left_out["safety_checker"] = None
    pipe = pipeline_class.from_pretrained(folder, torch_dtype=torch.float32, **left_out)
    pipe.set_progress_bar_config(disable=True)
    denoiser = getattr(pipe, checkpoint.family.denoiser)
    if checkpoint.family.denoiser == "unet":
        use_channels_last(denoiser)
    config = checkpoint.parts[checkpoint.family.denoiser].config
    asked = sampling(checkpoint.family, checkpoint.scheduler, checkpoint.index, config)
    source = Source(
        checkpoint.family,
        pipe,
        asked.guidance,
        asked.prediction,
        _t5_tokens(checkpoint.index, pipe) if checkpoint.family.name == "sd3" else 0,
    )
    for module in (denoiser, pipe.vae, *source.encoders()):
        module.requires_grad_(False).eval()
    return source


def _check(checkpoint: Checkpoint) -> None:
    """Refuse denoisers that take more than a prompt and noised latents."""
    folder, parts = checkpoint.folder, checkpoint.parts
    denoiser = parts[checkpoint.family.denoiser].config
    if takes_mask(denoiser, parts["vae"].config):
        kind = f"an inpainting model, whose denoiser takes {denoiser['in_channels']} channels"
    elif checkpoint.index.get("requires_aesthetics_score"):
        kind = "a refiner"
    elif guidance_embedding_dim(denoiser) is not None:
        kind = "distilled to few steps already, and its UNet takes the guidance as an input"
    else:
        return
    raise InvalidRequest(f"{folder}: is {kind}; train a checkpoint that makes pictures of prompts alone")


def _t5_tokens(index: dict[str, Any], pipe: Any) -> int:
    limit = pipe.tokenizer_3.model_max_length if pipe.tokenizer_3 else None
    return conditioning(index, pipe.transformer.config, limit).t5_tokens or 0


def _sd(source: Source, prompts: list[str], side: int, device: torch.device) -> dict[str, Any]:
    states, _ = source.pipe.encode_prompt(prompts, device, 1, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": states}


def _sdxl(source: Source, prompts: list[str], side: int, device: torch.device) -> dict[str, Any]:
    states, _, pooled, _ = source.pipe.encode_prompt(
        prompts, device=device, do_classifier_free_guidance=False
    )
    sizes = torch.tensor([[side, side, 0, 0, side, side]], device=device, dtype=torch.float32)
    return {
        "encoder_hidden_states": states,
        "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes.expand(len(prompts), -1)},
    }


def _sd3(source: Source, prompts: list[str], side: int, device: torch.device) -> dict[str, Any]:
    context, _, pooled, _ = source.pipe.encode_prompt(
        prompts,
        None,
        None,
        device=device,
        do_classifier_free_guidance=False,
        max_sequence_length=source.t5_tokens,
    )
    return {"encoder_hidden_states": context, "pooled_projections": pooled}


CONDITIONING: dict[str, Callable[[Source, list[str], int, torch.device], dict[str, Any]]] = {
    "sd": _sd,
    "sdxl": _sdxl,
    "sd3": _sd3,
}
