"""The conversion itself: one component after the other into a folder that appears when all is done."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from ..artifact import Artifact, load_artifact, seal, write_artifact
from ..errors import InvalidRequest
from ..files import check_space, hash_file
from ..mapped import kept_small, let_go
from . import FewStep, OnProgress, Storage, variants
from .checkpoints import Checkpoint, open_checkpoint
from .components import export
from .defaults import latent_space, sampling
from .layout import (
    component_infos,
    quiet_libraries,
    within_bounds,
    write_json,
    write_scheduler_and_index,
    write_tokenizers,
)
from .lora import Lora, fuse_all, read_lora, sampled
from .single_file import open_single_file
from .weights import load_module, stored_bytes


def convert_folder(
    source: Path,
    out: Path,
    *,
    stored: Storage,
    without_t5: bool,
    loras: Sequence[tuple[Path, float]],
    few_step: FewStep | None,
    single: Mapping[str, Any],
    name: str,
    on_progress: OnProgress,
) -> Artifact:
    """See `sfumato.convert`.

    stored: how weights are written. single: options for a single file. name: what the manifest calls the
    source.
    """
    if stored not in ("fp16", "fp32", "int8", "int4"):
        raise InvalidRequest(f"weights {stored!r}: must be fp16, fp32, int8 or int4")
    if source.is_file():
        checkpoint = open_single_file(source, without_t5=without_t5, **single)
    elif any(single.values()):
        raise InvalidRequest(f"{source}: a folder; {', '.join(single)} are for single files: leave them out")
    else:
        checkpoint = open_checkpoint(source, without_t5=without_t5, variants=variants(stored))
    adapters = [read_lora(file, scale, checkpoint) for file, scale in loras]
    checkpoint = sampled(checkpoint, adapters, few_step)
    denoiser = checkpoint.parts[checkpoint.family.denoiser].config
    with within_bounds(source):
        latents = latent_space(checkpoint.family, denoiser, checkpoint.parts["vae"].config)
        sampler = sampling(checkpoint.family, checkpoint.scheduler, checkpoint.index)
    check_space(out, sum(stored_bytes(part, stored) for part in checkpoint.parts.values()))
    done, total = count(), len(checkpoint.tokenizers) + len(checkpoint.components) + 1

    def stage(text: str) -> None:
        on_progress(text, next(done), total)

    with write_artifact(out) as folder, within_bounds(source), quiet_libraries():
        settings, lengths = write_tokenizers(checkpoint, folder, stage)
        for component in checkpoint.components:
            stage(f"converting {component.name}")
            _component(checkpoint, component.name, folder, stored, adapters)
        write_scheduler_and_index(checkpoint, folder)
        stage("hashing")
        seal(
            folder,
            name=out.resolve().name,
            family=checkpoint.family.name,
            source={"checkpoint": name, **_hashes(checkpoint)},
            precision=stored,
            loras=[{"file": lora.file.name, "scale": lora.scale} for lora in adapters],
            components=component_infos(checkpoint, lengths),
            latents=latents,
            sampling=sampler,
            conditioning=settings,
        )
    return load_artifact(out)


def _component(
    checkpoint: Checkpoint, name: str, folder: Path, stored: Storage, adapters: Sequence[Lora]
) -> None:
    component = checkpoint.family.component(name)
    part = checkpoint.part_of(component)
    with kept_small(part.files):
        module = load_module(part)
        fuse_all(adapters, part.name, module)
        export(
            component.kind, module, folder / name / "openvino_model.xml", stored, partial(let_go, part.files)
        )
    write_json(folder / name / "config.json", part.config)


def _hashes(checkpoint: Checkpoint) -> dict[str, str]:
    """The SHA-256 of every weight file that was read."""
    home = checkpoint.folder if checkpoint.folder.is_dir() else checkpoint.folder.parent
    files = {file for part in checkpoint.parts.values() for file in part.files}
    return {Path(os.path.relpath(file, home)).as_posix(): hash_file(file) for file in sorted(files)}
