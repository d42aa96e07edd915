"""From a TorchSource to a diffusers pipeline: found, checked, loaded, quantized and put in its place."""

from inspect import signature
from pathlib import Path
from typing import Any

from ..convert.checkpoints import Checkpoint, Json, open_checkpoint, t5_limit
from ..convert.checks import check_source
from ..convert.defaults import conditioning, latent_space, takes_mask
from ..errors import CheckpointError, InvalidRequest
from ..families import TEXT_KINDS
from ..manifest import LatentSpace
from .quantize import compile_blocks, held_bytes, quantize
from .source import TorchSource

NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def found_checkpoint(source: TorchSource) -> tuple[Checkpoint, LatentSpace]:
    """The checkpoint of a source, downloaded if need be, that makes pictures of prompts alone.

    Raises CheckpointError, and InvalidRequest for a model that begins with a picture, or that has no T5 to
    leave out.
    """
    checkpoint = open_checkpoint(_folder(source), without_t5=not source.t5)
    family, vae = checkpoint.family, checkpoint.parts["vae"].config
    denoiser = checkpoint.parts[family.denoiser].config
    if takes_mask(denoiser, vae) or checkpoint.index.get("requires_aesthetics_score"):
        raise InvalidRequest(
            f"{checkpoint.folder}: an inpainting model or refiner, which begins with a picture; give a "
            "checkpoint that makes pictures of prompts"
        )
    if not source.t5 and "t5" not in {component.kind for component in family.components}:
        raise InvalidRequest(f"torch:{source}: models of the family {family.name!r} have no T5; leave t5 out")
    return checkpoint, latent_space(family, denoiser, vae)


def found_device(source: TorchSource) -> Any:
    """The `torch.device` to compute on. Raises InvalidRequest where this machine cannot."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if source.device == "cpu" or (source.device == "auto" and not gpus):
        source.check_on_cpu()
        return torch.device("cpu")
    if not gpus:
        without = "was built without CUDA" if torch.version.cuda is None else "sees no CUDA GPU"
        raise InvalidRequest(
            f"device={source.device}: PyTorch {torch.__version__} {without}; leave it out to compute on the "
            "CPU, or install PyTorch for your GPU as https://pytorch.org/get-started says"
        )
    device = torch.device("cuda" if source.device == "auto" else source.device)
    if device.index is not None and device.index >= gpus:
        raise InvalidRequest(f"device={source.device}: the last GPU here is cuda:{gpus - 1}")
    return torch.device("cuda", device.index or 0)


def loaded(source: TorchSource, checkpoint: Checkpoint, device: Any) -> tuple[Any, dict[str, int]]:
    """The diffusers pipeline of a checkpoint, ready on `device`, and the bytes of its quantized networks.

    Raises CheckpointError for what diffusers cannot load, and InvalidRequest for a network that cannot be
    quantized so.
    """
    import torch

    dtype = getattr(torch, DTYPES[source.dtype_on(device.type)])
    pipe = _from_disk(checkpoint, dtype)
    held = {}
    for name in _quantized(source, checkpoint):
        module = getattr(pipe, name)
        quantize(module, source.quant, dtype=dtype, device=device)
        held[name] = held_bytes(module)
    if source.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif source.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    if source.compile:
        compile_blocks(getattr(pipe, checkpoint.family.denoiser))
    return pipe, held


def call_options(checkpoint: Checkpoint) -> Json:
    """SD3's length of the T5 part, as in model folders: attention is unmasked, so it changes the picture."""
    denoiser = checkpoint.parts[checkpoint.family.denoiser].config
    tokens = conditioning(checkpoint.index, denoiser, t5_limit(checkpoint)).t5_tokens
    return {} if tokens is None else {"max_sequence_length": tokens}


def _quantized(source: TorchSource, checkpoint: Checkpoint) -> list[str]:
    """The components to quantize: the denoiser, and in NF4 the T5, which is the larger half of an SD3."""
    if source.quant == "none":
        return []
    kinds = {"unet", "mmdit"} | ({"t5"} if source.quant == "nf4" else set())
    return [component.name for component in checkpoint.components if component.kind in kinds]


def _folder(source: TorchSource) -> Path:
    hub_id = check_source(source.place)
    path = Path(source.place)
    if hub_id is not None:
        from ..convert.hub import fetch

        path = fetch(hub_id, without_t5=not source.t5)
    if path.is_file():
        raise CheckpointError(
            f"torch:{source}: a single file; give a diffusers folder, or convert it and compare that"
        )
    return path


def _from_disk(checkpoint: Checkpoint, dtype: Any) -> Any:
    import diffusers

    files = [file.name for part in checkpoint.parts.values() for file in part.files]
    pipeline_class = getattr(diffusers, checkpoint.family.pipeline_classes[0])
    _quiet(diffusers)
    try:
        pipe = pipeline_class.from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            variant="fp16" if any(".fp16." in file for file in files) else None,
            **dict.fromkeys(_absent(checkpoint) & set(signature(pipeline_class.__init__).parameters)),
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{checkpoint.folder}: diffusers cannot load it ({reason})") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _absent(checkpoint: Checkpoint) -> set[str]:
    """What the pipeline takes and does without, though model_index.json may name it."""
    absent = set(NOT_NEEDED)
    for component in checkpoint.family.components:
        if component.kind in TEXT_KINDS and component not in checkpoint.components:
            absent |= {component.name, component.tokenizer or component.name}
    return absent


def _quiet(diffusers: Any) -> None:
    """Keep the libraries' progress bars and advice off standard error."""
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
