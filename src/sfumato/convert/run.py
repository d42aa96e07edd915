"""The conversion itself: one component after the other into a folder that appears when all is done."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from ..artifact import Artifact, load_artifact, seal, write_artifact
from ..errors import CheckpointError, InvalidRequest
from ..families import ConditioningSettings
from ..files import check_space, hash_file
from ..manifest import ComponentInfo
from . import OnProgress, Precision
from .checkpoints import Checkpoint, open_checkpoint, read_json
from .components import export
from .defaults import conditioning, latent_space, sampling
from .lora import Lora, read_lora
from .tokenizers import export_tokenizer, load_tokenizer
from .weights import is_16bit, load_module, stored_bytes

UNBOUNDED = 100_000  # transformers writes 1e30 where a tokenizer has no limit


def convert_folder(
    source: Path,
    out: Path,
    *,
    precision: Precision,
    without_t5: bool,
    loras: Sequence[tuple[Path, float]],
    on_progress: OnProgress,
) -> Artifact:
    """See `sfumato.convert`."""
    if precision not in ("fp16", "fp32"):
        raise InvalidRequest(f"precision {precision!r}: must be fp16 or fp32")
    checkpoint = open_checkpoint(source, without_t5=without_t5)
    adapters = [read_lora(file, scale, checkpoint) for file, scale in loras]
    for adapter in adapters:
        checkpoint = adapter.sampled(checkpoint)
    denoiser = checkpoint.parts[checkpoint.family.denoiser].config
    with _within_bounds(source):
        latents = latent_space(checkpoint.family, denoiser, checkpoint.parts["vae"].config)
        sampler = sampling(checkpoint.family, checkpoint.scheduler, checkpoint.index)
    check_space(out, sum(stored_bytes(part, precision) for part in checkpoint.parts.values()))
    done, total = count(), len(checkpoint.tokenizers) + len(checkpoint.components) + 1

    def stage(text: str) -> None:
        on_progress(text, next(done), total)

    with write_artifact(out) as folder, _within_bounds(source), _quiet_libraries():
        settings, lengths = _tokenizers(checkpoint, folder, stage)
        for component in checkpoint.components:
            stage(f"converting {component.name}")
            _component(checkpoint, component.name, folder, precision, adapters)
        _scheduler_and_index(checkpoint, folder)
        stage("hashing")
        seal(
            folder,
            name=out.resolve().name,
            family=checkpoint.family.name,
            source=_provenance(checkpoint),
            precision=precision,
            loras=[{"file": lora.file.name, "scale": lora.scale} for lora in adapters],
            components=_component_infos(checkpoint, lengths),
            latents=latents,
            sampling=sampler,
            conditioning=settings,
        )
    return load_artifact(out)


def _tokenizers(
    checkpoint: Checkpoint, folder: Path, stage: Callable[[str], None]
) -> tuple[ConditioningSettings, dict[str, int]]:
    """Write every tokenizer; returns the conditioning settings and each tokenizer's length."""
    loaded: dict[str, Any] = {}
    for name, class_name in checkpoint.tokenizers.items():
        loaded[name] = load_tokenizer(checkpoint.folder / name, class_name)
    denoiser = checkpoint.parts[checkpoint.family.denoiser].config
    settings = conditioning(checkpoint.index, denoiser, _t5_limit(checkpoint))
    lengths: dict[str, int] = {}
    for component in checkpoint.components:
        if component.tokenizer is None:
            continue
        name = component.tokenizer
        stage(f"writing {name}")
        if component.kind == "t5":
            longest = settings.t5_tokens or UNBOUNDED
        else:
            longest = checkpoint.part_of(component).config.get("max_position_embeddings", 77)
            longest = int(min(longest, loaded[name].model_max_length))
        lengths[name] = longest
        export_tokenizer(loaded[name], checkpoint.folder / name, folder / name, lengths[name])
    return settings, lengths


def _t5_limit(checkpoint: Checkpoint) -> int | None:
    """The T5 tokenizer's longest input; it holds for the zeros in T5's place too."""
    t5 = next((each.tokenizer for each in checkpoint.family.components if each.kind == "t5"), None)
    config = checkpoint.folder / (t5 or "") / "tokenizer_config.json"
    if t5 is None or not config.is_file():
        return None
    limit = read_json(config, checkpoint.folder).get("model_max_length")
    return int(min(limit, UNBOUNDED)) if isinstance(limit, int | float) else None


def _component(
    checkpoint: Checkpoint, name: str, folder: Path, precision: Precision, adapters: Sequence[Lora]
) -> None:
    component = checkpoint.family.component(name)
    part = checkpoint.part_of(component)
    dtype = torch.float16 if precision == "fp16" and is_16bit(part) else torch.float32
    module = load_module(part, dtype)
    for adapter in adapters:
        adapter.fuse(part.name, module)
    export(component.kind, module, folder / name / "openvino_model.xml", precision=precision)
    _write_json(folder / name / "config.json", part.config)


def _component_infos(checkpoint: Checkpoint, lengths: dict[str, int]) -> dict[str, ComponentInfo]:
    infos = {}
    for component in checkpoint.components:
        clip = component.kind in ("clip", "clip_projection")
        layers = checkpoint.part_of(component).config.get("num_hidden_layers", 12)
        infos[component.name] = ComponentInfo(
            kind=component.kind,
            tokenizer=component.tokenizer,
            max_tokens=lengths[component.tokenizer] if component.tokenizer else None,
            hidden_states=layers + 1 if clip else None,
        )
    return infos


def _scheduler_and_index(checkpoint: Checkpoint, folder: Path) -> None:
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", checkpoint.scheduler)
    kept = {"scheduler", *checkpoint.parts, *checkpoint.tokenizers}
    index = {
        name: [None, None] if isinstance(value, list) and len(value) == 2 and name not in kept else value
        for name, value in checkpoint.index.items()
    }
    _write_json(folder / "model_index.json", index)


def _provenance(checkpoint: Checkpoint) -> dict[str, str]:
    """The checkpoint's name and the SHA-256 of every weight file that was read."""
    files = [file for part in checkpoint.parts.values() for file in part.weights]
    hashes = {file.relative_to(checkpoint.folder).as_posix(): hash_file(file) for file in files}
    return {"checkpoint": checkpoint.folder.resolve().name, **hashes}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _within_bounds(source: Path) -> Iterator[None]:
    """Name a configuration's value that no model can have."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(
            f"{source}: {place} cannot be {first['input']!r} ({first['msg']}); check its configuration"
        ) from error


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep the libraries' own progress bars and tracing warnings off the terminal."""
    import warnings

    import diffusers
    import transformers

    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "nncf", "openvino")]
    levels = [logger.level for logger in loggers]
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            transformers.utils.logging.enable_progress_bar()
            diffusers.utils.logging.enable_progress_bar()
