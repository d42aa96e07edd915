"""From training runs to a checkpoint worth keeping: one diffusers folder in 16 bits."""

import json
import shutil
from pathlib import Path

import torch

from sfumato.errors import InvalidRequest
from sfumato.files import atomic_folder
from sfumato.train.embedded.autoencoder import load_autoencoder
from sfumato.train.embedded.models import known


def package(name: str, model: Path, vae: Path | None, target: Path) -> None:
    """Write `target`: the diffusers folder `model` with the autoencoder `vae`, in fp16 safetensors.

    vae: None for a folder without one, to be converted with another's. `model_index.json` gets the model's
    `defaults` for steps and guidance, and which captions suit it.
    Raises InvalidRequest for an unknown name, a folder without `model_index.json` and one without an
    autoencoder.
    """
    kind = known(name)
    if not (model / "model_index.json").is_file():
        raise InvalidRequest(f"{model} holds no trained model (model_index.json is missing)")
    autoencoder = None if vae is None else load_autoencoder(vae)
    with atomic_folder(target) as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("vae"))
        if autoencoder is not None:
            autoencoder.to(torch.float16).save_pretrained(folder / "vae")
        index = json.loads((model / "model_index.json").read_text()) | {
            "defaults": {"steps": kind.steps, "guidance": kind.guidance},
            "captions": "icons",
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
