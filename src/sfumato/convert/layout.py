"""Writing a model folder around its networks: tokenizers, scheduler, index, and the manifest."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..artifact import Artifact, load_artifact, seal, write_artifact
from ..errors import CheckpointError
from ..families import Component, ConditioningSettings
from ..manifest import ComponentInfo
from . import OnProgress
from .checkpoints import UNBOUNDED, Checkpoint, t5_limit
from .defaults import captions, conditioning, latent_space, sampling, takes_mask
from .preview import with_preview
from .tokenizers import export_tokenizer, load_tokenizer


def write_model(
    checkpoint: Checkpoint,
    out: Path,
    write: Callable[[Component, Path], None],
    hashes: Callable[[], dict[str, str]],
    *,
    doing: str,
    name: str,
    precision: str,
    loras: Sequence[dict[str, Any]] = (),
    token_merging: dict[str, Any] | None = None,
    on_progress: OnProgress,
) -> Artifact:
    """The model folder `out` of a checkpoint, which appears when all is done.

    write: puts one component into its folder; doing: what that is called. hashes: of the files that were
    read, by name. name: what the manifest calls the source.
    """
    denoiser = checkpoint.parts[checkpoint.family.denoiser].config
    with within_bounds(checkpoint.folder):
        vae = checkpoint.parts["vae"].config
        latents = latent_space(checkpoint.family, denoiser, vae)
        inpainting = takes_mask(denoiser, vae)
        sampler = sampling(checkpoint.family, checkpoint.scheduler, checkpoint.index, denoiser)
        suited = captions(checkpoint.index)
    done, total = count(), len(checkpoint.tokenizers) + len(checkpoint.components) + 1

    def stage(text: str) -> None:
        on_progress(text, next(done), total)

    with write_artifact(out) as folder, within_bounds(checkpoint.folder), quiet_libraries():
        settings, lengths = _tokenizers(checkpoint, folder, stage)
        for component in checkpoint.components:
            stage(f"{doing} {component.name}")
            write(component, folder / component.name)
        _scheduler_and_index(checkpoint, folder)
        stage("hashing")
        seal(
            folder,
            name=out.resolve().name,
            family=checkpoint.family.name,
            source={"checkpoint": name, **hashes()},
            precision=precision,
            loras=loras,
            token_merging=token_merging,
            components=_component_infos(checkpoint, lengths),
            latents=with_preview(folder, latents),
            inpainting=inpainting,
            sampling=sampler,
            conditioning=settings,
            captions=suited,
        )
    return load_artifact(out)


def _tokenizers(
    checkpoint: Checkpoint, folder: Path, stage: Callable[[str], None]
) -> tuple[ConditioningSettings, dict[str, int]]:
    """Write every tokenizer; returns the conditioning settings and each tokenizer's length."""
    loaded: dict[str, Any] = {}
    for name, files in checkpoint.tokenizers.items():
        loaded[name] = load_tokenizer(files.folder, files.class_name)
    denoiser = checkpoint.parts[checkpoint.family.denoiser].config
    settings = conditioning(checkpoint.index, denoiser, t5_limit(checkpoint))
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
        export_tokenizer(loaded[name], checkpoint.tokenizers[name].folder, folder / name, lengths[name])
    return settings, lengths


def _component_infos(checkpoint: Checkpoint, lengths: dict[str, int]) -> dict[str, ComponentInfo]:
    """What the manifest says of each component; lengths: those of the tokenizers."""
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
    """Write scheduler_config.json and model_index.json."""
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", checkpoint.scheduler)
    kept = {"scheduler", *checkpoint.parts, *checkpoint.tokenizers}
    index = {
        name: [None, None] if isinstance(value, list) and len(value) == 2 and name not in kept else value
        for name, value in checkpoint.index.items()
    }
    write_json(folder / "model_index.json", index)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object as people read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def within_bounds(source: Path) -> Iterator[None]:
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
def quiet_libraries() -> Iterator[None]:
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
