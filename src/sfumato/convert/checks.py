"""What can be said about a conversion's source and target before any library is loaded."""

from pathlib import Path

from ..artifact import MANIFEST
from ..errors import CheckpointError, InvalidRequest
from ..files import check_new_folder, write_errors
from .hub_id import HubId, parse_hub_id

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
PICKLE = "a pickle, which can run any code when it is opened, is never loaded"
FROM_FILE = "StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)"


def check_source(source: str | Path) -> HubId | None:
    """What to download where `source` is the name of a model on the Hub; None where it is on the disk.

    Raises CheckpointError, saying what to give instead, unless it may be a checkpoint. A file or folder of
    that name goes first.
    """
    path = Path(source)
    try:
        folder, exists, converted = path.is_dir(), path.exists(), (path / MANIFEST).is_file()
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read ({error.strerror})") from error
    if converted:
        raise CheckpointError(f"{source}: a converted model already; give the checkpoint it was made of")
    if folder:
        return None
    hub_id = None if exists else parse_hub_id(str(source))
    if hub_id is not None:
        return hub_id
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(
            f"{source}: {PICKLE}; get the checkpoint as safetensors in diffusers layout, or make that "
            f"with diffusers where you trust the file: {FROM_FILE}"
        )
    if exists and path.suffix.lower() == ".safetensors":
        return None
    if exists:
        raise CheckpointError(
            f"{source}: no checkpoint; give a folder in diffusers layout (with model_index.json) or a "
            ".safetensors file"
        )
    raise CheckpointError(
        f"{source}: no such file or folder; give a checkpoint, or a model on the Hub as org/name"
    )


def check_target(out: Path) -> None:
    """Raise InvalidRequest unless `out` is free to become a model folder: nothing that exists is replaced."""
    with write_errors(out):
        converted = (out / MANIFEST).is_file()
    if converted:
        raise InvalidRequest(f"{out}: holds a model already; remove it or choose another folder")
    check_new_folder(out)
