"""Finding a part's weight files and loading them into a module, strictly and from safetensors only."""

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from .checks import PICKLE, PICKLES

if TYPE_CHECKING:
    import torch

    from .checkpoints import Part

STEMS = ("diffusion_pytorch_model", "model")
VARIANTS = (None, "fp16")
# Buffers that older libraries stored and today's rebuild; the decoder of a full T5 has no use here.
IGNORED = re.compile(r"(^|\.)position_ids$|^decoder\.|^lm_head\.")


def find_weights(home: Path, *, inside_root: Path) -> tuple[tuple[Path, ...], str | None]:
    """The safetensors files of a part, full precision before `fp16`, and the variant's name.

    Raises CheckpointError for pickles, missing shards, and files that are cut short.
    """
    from .checkpoints import inside

    for variant in VARIANTS:
        for stem in STEMS:
            for index in _index_names(stem, variant):
                if (home / index).is_file():
                    return _shards(home / index, inside_root), variant
            single = home / (f"{stem}.safetensors" if variant is None else f"{stem}.{variant}.safetensors")
            if single.exists() or single.is_symlink():
                _check(inside(single, inside_root))
                return (single,), variant
    raise CheckpointError(_why_none(home))


def load_module(part: "Part", dtype: "torch.dtype") -> "torch.nn.Module":
    """Instantiate a part from its configuration and load its weights as `dtype`, in evaluation mode.

    Only the classes named here can be made. Every weight must find its place and every place its weight:
    CheckpointError names the first few that don't.
    """
    import diffusers
    import transformers

    loaders: dict[str, Any] = {
        "UNet2DConditionModel": diffusers.UNet2DConditionModel,
        "SD3Transformer2DModel": diffusers.SD3Transformer2DModel,
        "AutoencoderKL": diffusers.AutoencoderKL,
        "CLIPTextModel": transformers.CLIPTextModel,
        "CLIPTextModelWithProjection": transformers.CLIPTextModelWithProjection,
        "T5EncoderModel": transformers.T5EncoderModel,
    }
    loader = loaders[part.class_name]
    options = {"dtype": dtype} if loader.__module__.startswith("transformers") else {"torch_dtype": dtype}
    try:
        module, info = loader.from_pretrained(
            part.folder,
            local_files_only=True,
            use_safetensors=True,
            variant=part.variant,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{part.folder}: cannot be loaded as {part.class_name} ({reason})") from error
    _complain(part, "missing", info["missing_keys"])
    _complain(part, "not known to its configuration", info["unexpected_keys"])
    _complain(part, "of another shape than its configuration says", info["mismatched_keys"])
    loaded: torch.nn.Module = module.eval().requires_grad_(False)
    return loaded


def is_16bit(part: "Part") -> bool:
    """Whether a part's weights are stored in 16 bits."""
    with safe_open(part.weights[0], "np") as file:
        return all(file.get_slice(key).get_dtype() in ("F16", "BF16") for key in file.keys())  # noqa: SIM118


def stored_bytes(part: "Part", precision: str) -> int:
    """What a part's weights take once stored as fp16 or fp32, in bytes."""
    elements = 0
    for path in part.weights:
        with safe_open(path, "np") as file:
            for key in file.keys():  # noqa: SIM118
                if not IGNORED.search(key):
                    elements += math.prod(file.get_slice(key).get_shape())
    return elements * (2 if precision == "fp16" else 4)


def _index_names(stem: str, variant: str | None) -> tuple[str, ...]:
    if variant is None:
        return (f"{stem}.safetensors.index.json",)
    return f"{stem}.safetensors.index.{variant}.json", f"{stem}.{variant}.safetensors.index.json"


def _shards(index: Path, root: Path) -> tuple[Path, ...]:
    from .checkpoints import inside, read_json

    names = sorted({str(name) for name in read_json(index, root).get("weight_map", {}).values()})
    if not names:
        raise CheckpointError(f"{index}: lists no files; download it again")
    shards = tuple(index.parent / name for name in names)
    for shard in shards:
        inside(shard, root)
        if shard.suffix != ".safetensors":
            raise CheckpointError(f"{shard}: {index.name} names a file that is no safetensors")
        if not shard.is_file():
            raise CheckpointError(f"{shard}: shard named by {index.name} is missing; download it again")
        _check(shard)
    return shards


def _check(file: Path) -> None:
    try:
        with safe_open(file, "np") as opened:
            opened.keys()
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file}: cut short or damaged ({error}); download it again") from error


def _why_none(home: Path) -> str:
    pickles = sorted(path.name for path in home.iterdir() if path.suffix in PICKLES)
    if pickles:
        return (
            f"{home / pickles[0]}: {PICKLE}; "
            "get the safetensors version, or make one where you trust the file: "
            "load it with diffusers or transformers and call save_pretrained(folder, safe_serialization=True)"
        )
    return f"{home}: no weights found; expected {STEMS[0]}.safetensors or {STEMS[1]}.safetensors"


def _complain(part: "Part", what: str, keys: Any) -> None:
    names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
    names = [name for name in names if not IGNORED.search(name)]
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise CheckpointError(f"{part.folder}: weights {what}: {', '.join(names[:3])}{more}")
