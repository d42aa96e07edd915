"""The text encoders of a single file and of those given with it, each in the place that its width fits."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..checkpoints import Part
from .kinds import Encoder, Kind
from .names import Tensors, clip_tensors, identity_projection
from .networks import clip_config, t5_config
from .sections import ENCODERS, Section, find_sections

WIDTHS = {
    "clip": ("text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight"),
    "open_clip": ("token_embedding.weight",),
    "t5": ("shared.weight",),
}
LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.")


def encoder_parts(
    file: Path,
    kind: Kind,
    denoiser: dict[str, Any],
    own: Iterable[Section],
    given: Sequence[Path],
    *,
    without_t5: bool,
) -> dict[str, Part]:
    """The text encoders that a model needs, by name; those given go before the file's own.

    denoiser: its configuration. Raises CheckpointError for those missing and those that have no use.
    """
    places = list(zip(kind.encoders, kind.widths(denoiser), strict=True))
    needed = [place for place in places if not (without_t5 and place[0].kinds == ("t5",))]
    added = [_one_use(source, kind, places) for source in given]
    sections = [*(section for group in added for section in group), *own]
    parts: dict[str, Part] = {}
    for encoder, width in needed:
        section = next((each for each in sections if _fits(each, encoder, width)), None)
        if section is None:
            raise _missing(file, kind, encoder, width)
        with section.read():
            parts[encoder.name] = _part(section, encoder)
    return parts


def _one_use(source: Path, kind: Kind, places: list[tuple[Encoder, int]]) -> list[Section]:
    """The sections of a given file that the model has a place for; raises CheckpointError for none."""
    sections = [each for each in find_sections(source, "text_encoder") if each.kind in ENCODERS]
    fitting = [each for each in sections if any(_fits(each, *place) for place in places)]
    if fitting:
        return fitting
    found = ", ".join(f"one {_width(each)} wide ({each.kind})" for each in sections) or "none"
    wanted = ", ".join(f"{encoder.title}, {width} wide" for encoder, width in places)
    raise CheckpointError(
        f"{source}: no text encoder that {kind.title} uses (found {found}); it uses {wanted}"
    )


def _fits(section: Section, encoder: Encoder, width: int) -> bool:
    return section.kind in encoder.kinds and _width(section) == width


def _width(section: Section) -> int | None:
    stored = next((section.tensors[name] for name in WIDTHS[section.kind] if name in section.tensors), None)
    return None if stored is None else stored.shape[-1]


def _missing(file: Path, kind: Kind, encoder: Encoder, width: int) -> CheckpointError:
    without = ", or leave it out with --without-t5" if encoder.kinds == ("t5",) else ""
    return CheckpointError(
        f"{file}: has no {encoder.name} ({encoder.title}, {width} wide); give it with --text-encoder: a file "
        f"such as {encoder.file}, or the folder {encoder.name} of a {kind.title} model in diffusers "
        f"layout{without}"
    )


def _part(section: Section, encoder: Encoder) -> Part:
    if section.kind == "t5":
        config = section.config or t5_config(section)
        return Part(encoder.name, encoder.class_name, section.source, config, section.tensors)
    tensors = clip_tensors(section)
    if encoder.layers is not None:
        tensors = _first_layers(tensors, encoder.layers)
    projection = tensors.get("text_projection.weight")
    if encoder.class_name == "CLIPTextModel":
        tensors.pop("text_projection.weight", None)
    elif projection is None and encoder.unprojected:
        tensors["text_projection.weight"] = identity_projection(tensors)
    config = section.config or clip_config(section, tensors, activation=encoder.activation)
    return Part(encoder.name, encoder.class_name, section.source, config, tensors)


def _first_layers(tensors: Tensors, layers: int) -> Tensors:
    numbers = {name: LAYER.match(name) for name in tensors}
    return {name: tensors[name] for name, match in numbers.items() if match is None or int(match[1]) < layers}
