"""The conversion itself: one component after the other into a folder that appears when all is done."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..artifact import Artifact
from ..errors import InvalidRequest
from ..families import Component
from ..files import check_space, hash_file
from ..graphs.token_merging import TokenMerging
from ..mapped import kept_small, let_go
from . import FewStep, OnProgress, Storage, variants
from .checkpoints import TINY_DECODER, Checkpoint, Part, open_checkpoint
from .components import export
from .layout import write_json, write_model
from .lora import Lora, fuse_all, read_lora, sampled
from .single_file import open_single_file
from .single_file.autoencoder import instead
from .tiny_decoder import open_tiny_decoder
from .weights import find_weights, load_module, stored_bytes

NONE: Mapping[str, Path] = {}


def convert_checkpoint(
    source: Path,
    out: Path,
    *,
    stored: Storage,
    without_t5: bool,
    loras: Sequence[tuple[Path, float]],
    few_step: FewStep | None,
    merging: TokenMerging,
    single: Mapping[str, Any],
    name: str,
    vae: Path | None = None,
    parts: Mapping[str, Path] = NONE,
    tiny_decoder: Path | None = None,
    on_progress: OnProgress,
) -> Artifact:
    """See `sfumato.convert`.

    stored: how weights are written. vae: takes the place of the source's autoencoder. single: further options
    for a single file. name: what the manifest calls the source. parts: folders, by the part's name, whose
    weights take the place of the source's. tiny_decoder: folder of a TAESD for these latents.
    """
    if source.is_file():
        checkpoint = open_single_file(source, without_t5=without_t5, vae=vae, **single)
    elif any(single.values()):
        raise InvalidRequest(f"{source}: a folder; {', '.join(single)} are for single files: leave them out")
    else:
        elsewhere = () if vae is None else ("vae",)
        checkpoint = open_checkpoint(
            source, without_t5=without_t5, variants=variants(stored), elsewhere=elsewhere
        )
        if vae is not None:
            checkpoint.parts["vae"] = instead(vae, checkpoint)
    for part, folder in parts.items():
        weights = find_weights(folder, inside_root=folder)
        checkpoint.parts[part] = replace(checkpoint.parts[part], folder=folder, tensors=weights)
    if tiny_decoder is not None:
        checkpoint.parts[TINY_DECODER] = open_tiny_decoder(tiny_decoder, checkpoint.parts["vae"])
    adapters = [read_lora(file, scale, checkpoint) for file, scale in loras]
    checkpoint = sampled(checkpoint, adapters, few_step)
    check_space(out, sum(stored_bytes(part, stored) for part in checkpoint.parts.values()))

    def write(component: Component, folder: Path) -> None:
        merges = merging if component.name == checkpoint.family.denoiser else TokenMerging(0.0)
        _component(checkpoint.part_of(component), component, folder, stored, adapters, merges)

    return write_model(
        checkpoint,
        out,
        write,
        lambda: _hashes(checkpoint, parts),
        doing="converting",
        name=name,
        precision=stored,
        loras=[{"file": lora.file.name, "scale": lora.scale} for lora in adapters],
        token_merging=merging.described,
        on_progress=on_progress,
    )


def _component(
    part: Part,
    component: Component,
    folder: Path,
    stored: Storage,
    adapters: Sequence[Lora],
    merging: TokenMerging,
) -> None:
    with kept_small(part.files):
        module = load_module(part)
        fuse_all(adapters, part.name, module)
        xml = folder / "openvino_model.xml"
        export(component.kind, module, xml, stored, partial(let_go, part.files), merging)
    write_json(folder / "config.json", part.config)


def _hashes(checkpoint: Checkpoint, replaced: Mapping[str, Path]) -> dict[str, str]:
    """The SHA-256 of every weight file that was read; of the replaced parts', by a name that says so."""
    home = checkpoint.folder if checkpoint.folder.is_dir() else checkpoint.folder.parent
    hashes = {}
    for part in checkpoint.parts.values():
        for file in part.files:
            inside = Path(os.path.relpath(file, home)).as_posix()
            name = f"trained {part.name}/{file.name}" if part.name in replaced else inside
            hashes[name] = hash_file(file)
    return dict(sorted(hashes.items()))
