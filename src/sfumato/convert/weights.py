"""Finding a part's weight files and loading them into a module, strictly and from safetensors only."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..mapped import let_go
from .checks import PICKLE, PICKLES
from .tensors import SIXTEEN_BITS, Store, Stored

if TYPE_CHECKING:
    import torch

    from .checkpoints import Part

BYTES = {"int8": 1, "int4": 0.5, "nf4": 0.5}
STEMS = ("diffusion_pytorch_model", "model")
VARIANTS = (None, "fp16")
# Buffers that older libraries stored and today's rebuild; of a full T5 only the encoder has a use here.
IGNORED = re.compile(r"(^|\.)position_ids$")
IGNORED_T5 = re.compile(r"^decoder\.|^lm_head\.")
# T5's table of tokens is stored once, or twice under the two names of one thing.
TIED = ("shared.weight", "encoder.embed_tokens.weight")
POSITIONS = "pos_embed.pos_embed"
TRANSFORMERS = {
    "CLIPTextModel": "CLIPTextConfig",
    "CLIPTextModelWithProjection": "CLIPTextConfig",
    "T5EncoderModel": "T5Config",
}


def find_weights(
    home: Path, *, inside_root: Path, variants: Sequence[str | None] = VARIANTS
) -> dict[str, Stored]:
    """The tensors of a part's safetensors files, of the first of these variants that it has.

    Raises CheckpointError for pickles, missing shards, and files that are cut short.
    """
    from .checkpoints import inside

    for variant in variants:
        for stem in STEMS:
            for index in index_names(stem, variant):
                if (home / index).is_file():
                    return _shards(home / index, inside_root)
            single = home / (f"{stem}.safetensors" if variant is None else f"{stem}.{variant}.safetensors")
            if single.exists() or single.is_symlink():
                return Store(inside(single, inside_root)).tensors()
    raise CheckpointError(_why_none(home))


def load_module(part: "Part") -> "torch.nn.Module":
    """Instantiate a part in evaluation mode over its weights as they are stored, mapped and not copied.

    Only the classes named here can be made. Every weight must find its place with the right shape and finite
    values, and every place its weight: CheckpointError names the first few that don't.
    """
    import torch
    from accelerate import init_empty_weights

    try:
        # transformers has buffers that are computed and not stored, diffusers none: SD3.5's takes 3.6 GB.
        with init_empty_weights(include_buffers=part.class_name not in TRANSFORMERS):
            module = build(part.class_name, part.config)
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{part.folder}: cannot be built as {part.class_name} ({reason})") from error
    tensors = _matched(part, module.state_dict())
    values = {}
    for name, stored in tensors.items():
        values[name] = stored.read()
        if not torch.isfinite(values[name].sum(dtype=torch.float32)):
            raise CheckpointError(f"{part.folder}: {name} holds NaN or infinity; download it again")
        let_go([stored.store.path])
    module.load_state_dict(values, strict=False, assign=True)
    if hasattr(module, "tie_weights"):
        module.tie_weights()
    loaded: torch.nn.Module = module.eval().requires_grad_(False)
    return loaded


def stored_bytes(part: "Part", storage: str) -> int:
    """What a part's weights take at least once stored as fp16, fp32, int8 or int4; no 16 bits are widened.

    An MMDiT's table of positions is stored as two small ones (see `convert.positions`).
    """
    total = 0.0
    for name, stored in part.tensors.items():
        tied = name == TIED[1] and TIED[0] in part.tensors
        if tied or name == POSITIONS or _ignored(part, name):
            continue
        wide = stored.dtype not in SIXTEEN_BITS and storage == "fp32"
        total += math.prod(stored.shape) * (4 if wide else BYTES.get(storage, 2))
    return round(total)


def index_names(stem: str, variant: str | None) -> tuple[str, ...]:
    """How libraries have named the index of a sharded file."""
    if variant is None:
        return (f"{stem}.safetensors.index.json",)
    return f"{stem}.safetensors.index.{variant}.json", f"{stem}.{variant}.safetensors.index.json"


def build(class_name: str, config: Mapping[str, Any]) -> Any:
    """An untrained module of one of the classes that checkpoints may have; KeyError for any other."""
    import diffusers
    import transformers

    if class_name in TRANSFORMERS:
        settings = getattr(transformers, TRANSFORMERS[class_name]).from_dict(dict(config))
        return getattr(transformers, class_name)(settings)
    kinds: dict[str, Any] = {
        "UNet2DConditionModel": diffusers.UNet2DConditionModel,
        "SD3Transformer2DModel": diffusers.SD3Transformer2DModel,
        "AutoencoderKL": diffusers.AutoencoderKL,
        "AutoencoderTiny": diffusers.AutoencoderTiny,
    }
    return kinds[class_name].from_config(dict(config))


def _matched(part: "Part", places: Mapping[str, Any]) -> dict[str, Stored]:
    """The tensors by the names of their places; complains of what has none, or another shape."""
    found: dict[str, Stored] = {}
    strangers = []
    for name, stored in part.tensors.items():
        place = next((each for each in spellings(name) if each in places), None)
        if place is not None:
            found[place] = stored
        elif not _ignored(part, name):
            strangers.append(name)
    _complain(part, "not known to its configuration", strangers)
    tied = dict(zip(TIED, reversed(TIED), strict=True))
    missing = [name for name in places if name not in found and tied.get(name) not in found]
    _complain(part, "missing", [name for name in missing if not _ignored(part, name)])
    shapes = [name for name, stored in found.items() if stored.shape != tuple(places[name].shape)]
    _complain(part, "of another shape than its configuration says", shapes)
    return found


def _ignored(part: "Part", name: str) -> bool:
    t5 = part.class_name == "T5EncoderModel" and IGNORED_T5.search(name)
    return bool(t5 or IGNORED.search(name))


def spellings(name: str) -> tuple[str, str]:
    """A name with and without `text_model.`: transformers 5 dropped it from CLIPTextModel, files have it."""
    short = name.removeprefix("text_model.")
    return name, (short if short != name else f"text_model.{name}")


def _shards(index: Path, root: Path) -> dict[str, Stored]:
    from .checkpoints import inside, read_json

    weight_map = read_json(index, root).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: lists no files; download it again")
    tensors: dict[str, Stored] = {}
    for name in sorted({str(name) for name in weight_map.values()}):
        shard = inside(index.parent / name, root)
        if shard.suffix != ".safetensors":
            raise CheckpointError(f"{shard}: {index.name} names a file that is no safetensors")
        if not shard.is_file():
            raise CheckpointError(f"{shard}: shard named by {index.name} is missing; download it again")
        tensors |= Store(shard).tensors()
    return tensors


def _why_none(home: Path) -> str:
    pickles = sorted(path.name for path in home.iterdir() if path.suffix in PICKLES)
    if pickles:
        return (
            f"{home / pickles[0]}: {PICKLE}; "
            "get the safetensors version, or make one where you trust the file: "
            "load it with diffusers or transformers and call save_pretrained(folder, safe_serialization=True)"
        )
    return f"{home}: no weights found; expected {STEMS[0]}.safetensors or {STEMS[1]}.safetensors"


def _complain(part: "Part", what: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise CheckpointError(f"{part.folder}: weights {what}: {', '.join(sorted(names)[:3])}{more}")
