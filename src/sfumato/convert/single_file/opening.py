"""Opening a single file: its networks and those given beside it, put together to one checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, InvalidRequest
from ...families import Component
from ..checkpoints import Checkpoint, Part, family_of, part_name
from .autoencoder import given_vae, vae_part, vae_section
from .encoders import encoder_parts
from .kinds import SD3, Kind, kind_of, pipeline_of
from .names import denoiser_tensors
from .networks import mmdit_config
from .prediction import predicting, predicts
from .sections import (
    DENOISERS,
    Section,
    check_supported,
    no_denoiser,
    open_store,
    read_sections,
)
from .tokenizers import check_folder, tokenizer_files
from .unet import unet_config

Json = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """What a single file and its companions hold. pipeline: diffusers' class for it."""

    kind: Kind
    pipeline: str
    parts: dict[str, Part]
    scheduler: Json


def open_single_file(
    file: Path,
    *,
    without_t5: bool = False,
    vae: Path | None = None,
    text_encoders: Sequence[Path] = (),
    tokenizers: Path | None = None,
    prediction: str | None = None,
) -> Checkpoint:
    """A checkpoint of Stable Diffusion 1, 2, XL or 3 that is one safetensors file in its original layout.

    Architecture and configurations are derived from the tensors' names and shapes; no weights are read.
    vae, text_encoders: files, or components of diffusers folders, that have what the file lacks; they go
        before what it has. without_t5: do without SD3's third encoder.
    tokenizers: a folder that has tokenizer/ (tokenizer_2/, ...); CLIP's and T5's own by default.
    prediction: "epsilon" or "v_prediction" where the file does not say it.

    Raises CheckpointError for files that are damaged or of another layout, for parts that are missing, not
    used, or of another model, and where tokenizers are not to be had.
    """
    check_folder(tokenizers)
    model = read_model(
        file, without_t5=without_t5, vae=vae, text_encoders=text_encoders, prediction=prediction
    )
    family = family_of(file, {"_class_name": model.pipeline})
    components = tuple(each for each in family.components if part_name(each) in model.parts)
    found = {
        encoder.tokenizer: tokenizer_files(file, encoder, tokenizers)
        for encoder in model.kind.encoders
        if encoder.name in model.parts
    }
    return Checkpoint(
        file, family, _index(model, components), components, model.parts, found, model.scheduler
    )


def read_model(
    file: Path,
    *,
    without_t5: bool = False,
    vae: Path | None = None,
    text_encoders: Sequence[Path] = (),
    prediction: str | None = None,
) -> Model:
    """See `open_single_file`: the networks alone."""
    store = open_store(file)
    own = read_sections(store)
    section = next((each for each in own if each.kind in DENOISERS), None)
    if section is None:
        raise no_denoiser(store)
    check_supported(store)
    with section.read():
        config = mmdit_config(section) if section.kind == "mmdit" else unet_config(section)
    kind = kind_of(section, config)
    pipeline = pipeline_of(section, kind, config)
    if kind is SD3 and prediction is not None:
        raise InvalidRequest(f"prediction {prediction!r}: {kind.title} predicts velocities; leave it out")
    scheduler, changes = predicting(predicts(prediction, kind, section, store), kind, store)
    name = "transformer" if kind is SD3 else "unet"
    class_name = config["_class_name"]
    config |= kind.denoiser | changes
    parts = encoder_parts(file, kind, config, own, text_encoders, without_t5=without_t5)
    with section.read():
        tensors = denoiser_tensors(section, class_name, config)
    parts[name] = Part(name, class_name, file, config, tensors)
    parts["vae"] = _vae(file, kind, config["out_channels"], own, vae)
    return Model(kind, pipeline, parts, scheduler)


def _vae(file: Path, kind: Kind, channels: int, own: list[Section], given: Path | None) -> Part:
    if given is not None:
        return given_vae(given, kind.title, channels, kind.vae)
    section = vae_section(own)
    if section is None:
        raise CheckpointError(
            f"{file}: has no autoencoder; give one with --vae: a safetensors file, or the folder vae of a "
            f"{kind.title} model in diffusers layout"
        )
    return vae_part(section, kind.title, channels, kind.vae)


def _index(model: Model, components: tuple[Component, ...]) -> Json:
    """What model_index.json says of such a model."""
    index: Json = {"_class_name": model.pipeline}
    for encoder in model.kind.encoders:
        there = encoder.name in model.parts
        index[encoder.name] = ["transformers", encoder.class_name] if there else [None, None]
        index[encoder.tokenizer] = ["transformers", encoder.tokenizer_class] if there else [None, None]
    for component in components:
        name = part_name(component)
        index.setdefault(name, ["diffusers", model.parts[name].class_name])
    index["scheduler"] = ["diffusers", model.scheduler["_class_name"]]
    return index | model.kind.options
