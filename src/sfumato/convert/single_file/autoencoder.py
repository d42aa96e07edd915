"""The autoencoder of a single file, or one that is given in the place of a checkpoint's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..checkpoints import Checkpoint, Part, read_json
from .names import vae_tensors
from .networks import vae_config
from .sections import Section, find_sections

Json = Mapping[str, Any]


def instead(given: Path, checkpoint: Checkpoint) -> Part:
    """The autoencoder in `given` for a diffusers folder; loads no weights.

    given: a safetensors file, whose scale and shift are those of the checkpoint's own, or the folder `vae` of
    a model in diffusers layout. Raises CheckpointError where it has none, or one for other latents, and where
    neither says the scale.
    """
    folder = checkpoint.folder / "vae"
    own = read_json(folder / "config.json", checkpoint.folder) if folder.is_dir() else {}
    channels = checkpoint.parts[checkpoint.family.denoiser].config["out_channels"]
    part = given_vae(given, "the checkpoint", channels, own)
    if "scaling_factor" not in part.config:
        raise CheckpointError(
            f"{given}: does not say the scale of its latents, and {checkpoint.folder} has no autoencoder to "
            "tell it; give a folder with config.json"
        )
    return part


def given_vae(given: Path, title: str, channels: int, unseen: Json) -> Part:
    """The autoencoder in a file or folder. unseen: what a file does not say, as for `vae_part`."""
    section = vae_section(find_sections(given, "vae"))
    if section is None:
        raise CheckpointError(f"{given}: has no autoencoder; --vae takes one for {title}")
    return vae_part(section, title, channels, unseen)


def vae_section(sections: list[Section]) -> Section | None:
    """The autoencoder among the networks that were found."""
    return next((each for each in sections if each.kind == "vae"), None)


def vae_part(section: Section, title: str, channels: int, unseen: Json) -> Part:
    """The autoencoder, checked to be for latents of so many channels.

    title: what needs it. unseen: of its configuration, what cannot be seen in shapes, such as the scale.
    """
    with section.read():
        tensors = vae_tensors(section)
        config = section.config or dict(unseen) | vae_config(section, tensors)
    if config.get("latent_channels") != channels:
        raise CheckpointError(
            f"{section.source}: the autoencoder's latents have {config.get('latent_channels')} channels, and "
            f"{title} needs {channels}; give another with --vae"
        )
    return Part("vae", "AutoencoderKL", section.source, config, tensors)
