"""What can be said about a conversion's source and target before any library is loaded."""

import re
from pathlib import Path

from ..artifact import MANIFEST
from ..errors import CheckpointError, InvalidRequest
from ..files import check_new_folder, write_errors

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
PICKLE = "a pickle, which can run any code when it is opened, is never loaded"
HUB_ID = re.compile(r"(?:https?:/+(?:huggingface\.co|hf\.co)/)?(\w[\w.-]*/(\w[\w.-]*))")
FROM_FILE = "StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)"


def check_source(source: Path) -> None:
    """Raise CheckpointError, saying what to give instead, unless `source` may be a diffusers folder."""
    try:
        folder, exists, converted = source.is_dir(), source.exists(), (source / MANIFEST).is_file()
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read ({error.strerror})") from error
    if converted:
        raise CheckpointError(f"{source}: a converted model already; give the checkpoint it was made of")
    if folder:
        return
    if source.suffix.lower() in PICKLES:
        raise CheckpointError(
            f"{source}: {PICKLE}; get the checkpoint as safetensors in diffusers layout, or make that "
            f"with diffusers where you trust the file: {FROM_FILE}"
        )
    if source.suffix.lower() == ".safetensors":
        raise CheckpointError(
            f"{source}: single files are not read yet; give a folder in diffusers layout, which diffusers "
            f"makes of such a file: {FROM_FILE}"
        )
    if exists:
        raise CheckpointError(f"{source}: a file; give a folder in diffusers layout (with model_index.json)")
    if hub := HUB_ID.fullmatch(str(source)):
        raise CheckpointError(
            f"{source}: no such folder, and Hub ids are not read yet; download it with "
            f"`hf download {hub[1]} --local-dir {hub[2]}` and give that folder"
        )
    raise CheckpointError(f"{source}: no such folder; give a checkpoint in diffusers layout")


def check_target(out: Path) -> None:
    """Raise InvalidRequest unless `out` is free to become a model folder: nothing that exists is replaced."""
    with write_errors(out):
        converted = (out / MANIFEST).is_file()
    if converted:
        raise InvalidRequest(f"{out}: holds a model already; remove it or choose another folder")
    check_new_folder(out)
