"""What a file holds: its networks, told from the names of their tensors, each without its prefix."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..checkpoints import read_json
from ..checks import PICKLE, PICKLES
from ..tensors import Store, Stored
from ..weights import find_weights

log = logging.getLogger(__name__)

PREFIXES = (
    "model.diffusion_model.",
    "first_stage_model.",
    "vae.",
    "cond_stage_model.transformer.",
    "cond_stage_model.model.",
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.0.model.",
    "conditioner.embedders.1.model.",
    "text_encoders.clip_l.transformer.",
    "text_encoders.clip_g.transformer.",
    "text_encoders.t5xxl.transformer.",
)
# One tensor that every network of a layout has, and no other.
MARKS = {
    "input_blocks.0.0.weight": "unet",
    "joint_blocks.0.x_block.attn.qkv.weight": "mmdit",
    "decoder.mid.block_1.conv1.weight": "vae",
    "decoder.mid_block.resnets.0.conv1.weight": "vae",
    "transformer.resblocks.0.ln_1.weight": "open_clip",
    "text_model.encoder.layers.0.layer_norm1.weight": "clip",
    "encoder.layers.0.layer_norm1.weight": "clip",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "t5",
}
DENOISERS = ("unet", "mmdit")
ENCODERS = ("clip", "open_clip", "t5")
COMPONENTS = {
    "AutoencoderKL": "vae",
    "CLIPTextModel": "clip",
    "CLIPTextModelWithProjection": "clip",
    "T5EncoderModel": "t5",
}
# Of whole CLIPs the picture half and the logits' scale, of samplers what a scheduler says here.
UNUSED = re.compile(
    r"(^|\.)(logit_scale|attn_mask|position_ids)$|^(vision_model|visual|visual_projection|loss|model_ema)\."
    r"|^(global_step|v_pred|ztsnr|betas|\w*alphas_cum\w+|posterior_\w+|spiece_model)$"
)
FOREIGN = {
    r"lora_(up|down|[AB]|mid)\b|\.lora\.|hada_w|lokr_w|dora_scale": (
        "a LoRA, which --lora adds to the checkpoint that it was made for"
    ),
    r"^(model\.diffusion_model\.)?(double_blocks|single_blocks)\.": "a model of the Flux kind",
    r"^(control_model|controlnet_\w+|input_hint_block)\.": "a ControlNet",
    r"^(model\.|unet\.|transformer\.)?(down_blocks|transformer_blocks)\.": (
        "one network of a folder in diffusers layout; give the whole folder"
    ),
}
# What has a UNet like the known ones, but is used in another way.
UNSUPPORTED = {
    r"^noise_augmentor\.": "an unCLIP model",
    r"\.(time_stack|motion_modules|temporal_transformer)\.": "a video model",
    r"\.time_embed(ding)?\.cond_proj\.": (
        "a latent consistency model that takes the guidance as an input, read from a diffusers folder only"
    ),
    r"^edm_(mean|vpred)": "a model trained in EDM's space, such as Playground 2.5",
}
# Scaled 8-bit floats (ComfyUI), NF4 and INT8 (bitsandbytes).
PACKED = re.compile(
    r"(^|\.)(scaled_fp8|scale_weight|scale_input|weight_scale|input_scale|comfy_quant)$"
    r"|\.(absmax|nested_absmax|quant_map|SCB)$|\.quant_state\."
)


@dataclass(frozen=True)
class Section:
    """One network as it was found.

    kind: one of MARKS' values. tensors: by the names of its layout, without the file's prefix.
    config: of a component of a diffusers folder, which says more than shapes can.
    """

    source: Path
    kind: str
    tensors: Mapping[str, Stored]
    prefix: str = ""
    config: dict[str, Any] | None = None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that must be there; raises CheckpointError."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.source}: {self.prefix}{name} is missing; download the file again")
        return self.tensors[name].shape

    @contextmanager
    def read(self) -> Iterator[None]:
        """Where the network is made sense of: CheckpointError for packed weights and absurd shapes."""
        for name in self.tensors:
            if PACKED.search(name):
                raise CheckpointError(
                    f"{self.source}: weights are packed in few bits with scales of their own "
                    f"({self.prefix}{name}); get the file in fp16 or bf16"
                )
        try:
            yield
        except (ValueError, TypeError, IndexError, ArithmeticError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{self.source}: the shapes of its {self.kind} are those of no supported model ({reason})"
            ) from error


def open_store(file: Path) -> Store:
    """The safetensors file; raises CheckpointError for pickles and damaged files."""
    if file.suffix.lower() in PICKLES:
        raise CheckpointError(f"{file}: {PICKLE}; get its safetensors version")
    return Store(file)


def read_sections(store: Store) -> list[Section]:
    """The networks of a file, none where nothing is known."""
    groups: dict[str, dict[str, Stored]] = {}
    for name, stored in store.tensors().items():
        prefix = next((each for each in PREFIXES if name.startswith(each)), "")
        groups.setdefault(prefix, {})[name.removeprefix(prefix)] = stored
    found, strangers = [], []
    for prefix, tensors in groups.items():
        kind = next((kind for mark, kind in MARKS.items() if mark in tensors), None)
        if kind is None:
            strangers += [f"{prefix}{name}" for name in tensors]
            continue
        used = {name: stored for name, stored in tensors.items() if not UNUSED.search(name)}
        found.append(Section(store.path, kind, used, prefix))
    if found and strangers:
        log.info("%s: %d tensors have no use here, such as %s", store.path, len(strangers), strangers[0])
    return found


def find_sections(source: Path, what: str) -> list[Section]:
    """The networks in a file, in a component of a diffusers folder, or in all of its components.

    what: the components' name, but for a number. Raises CheckpointError where there is none.
    """
    if not source.is_dir():
        return read_sections(open_store(source))
    homes = [source, *(source / f"{what}{number}" for number in ("", "_2", "_3"))]
    sections = [_component(home) for home in homes if (home / "config.json").is_file()]
    if not sections:
        raise CheckpointError(
            f"{source}: neither a safetensors file nor a diffusers folder's {what}, which has a config.json"
        )
    return sections


def _component(home: Path) -> Section:
    root = home.parent if (home.parent / "model_index.json").is_file() else home
    config = read_json(home / "config.json", root)
    class_name = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    if class_name not in COMPONENTS:
        raise CheckpointError(
            f"{home}: class {class_name!r} is not supported here; supported are {', '.join(COMPONENTS)}"
        )
    return Section(home, COMPONENTS[class_name], find_weights(home, inside_root=root), config=config)


def check_supported(store: Store) -> None:
    """Raise CheckpointError for models that look like known ones and are not."""
    for name in store.tensors():
        if reason := _foreign(name, UNSUPPORTED):
            raise CheckpointError(
                f"{store.path}: {reason} ({name}); supported are Stable Diffusion 1, 2, XL and 3"
            )


def no_denoiser(store: Store) -> CheckpointError:
    """Why a file is no checkpoint, as far as its tensors' names tell."""
    names = sorted(store.tensors())
    for name in names:
        if reason := _foreign(name, FOREIGN):
            return CheckpointError(f"{store.path}: {reason} ({name})")
    parts = {"vae": "an autoencoder, to be given with --vae"}
    parts |= dict.fromkeys(ENCODERS, "a text encoder, to be given with --text-encoder")
    if sections := read_sections(store):
        return CheckpointError(
            f"{store.path}: holds only {parts[sections[0].kind]}; give the checkpoint first"
        )
    shown = ", ".join(names[:3]) or "none"
    return CheckpointError(
        f"{store.path}: no checkpoint in the original layout: looked for a UNet (input_blocks) or an MMDiT "
        f"(joint_blocks), with or without {PREFIXES[0]}; its tensors are {shown}"
    )


def _foreign(name: str, patterns: Mapping[str, str]) -> str | None:
    return next((what for pattern, what in patterns.items() if re.search(pattern, name)), None)
