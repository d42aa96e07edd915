"""Taking models that are converted already: our own as they are, those of other tools with a manifest."""

import shutil
from pathlib import Path
from typing import Any

from ..artifact import MANIFEST, Artifact, load_artifact, load_manifest, verify, write_artifact
from ..errors import CheckpointError, InvalidRequest
from ..families import CLIP_KINDS, Component
from ..files import check_space, hash_file
from ..runtime.devices import core
from . import OnProgress
from .checkpoints import CLASSES, Checkpoint, Part, family_of, inside, part_name, read_json, tokenizers_of
from .defaults import guidance_embedding_dim

IR = "openvino_model.xml"
WEIGHTS = "openvino_model.bin"
FILES = (IR, WEIGHTS, "config.json")
INPUTS = {
    "clip": {"input_ids"},
    "clip_projection": {"input_ids"},
    "t5": {"input_ids"},
    "unet": {"sample", "timestep", "encoder_hidden_states"},
    "mmdit": {"hidden_states", "timestep", "encoder_hidden_states", "pooled_projections"},
    "vae_encoder": {"sample"},
    "vae_decoder": {"latent_sample"},
}
SDXL_INPUTS = {"text_embeds", "time_ids"}
GUIDANCE_INPUTS = {"timestep_cond"}
OUTPUTS = {
    "clip": {"last_hidden_state"},
    "clip_projection": {"last_hidden_state", "text_embeds"},
    "t5": {"last_hidden_state"},
    "unet": {"out_sample"},
    "mmdit": {"out_sample"},
    "vae_encoder": {"latent_parameters"},
    "vae_decoder": {"sample"},
}
# Stored types of weights, by the names that artifacts give them; the one with the most bytes counts.
PRECISIONS = {
    "f32": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "i8": "int8",
    "u8": "int8",
    "i4": "int4",
    "u4": "int4",
}


def is_converted(folder: Path) -> bool:
    """Whether a folder holds a model in OpenVINO's format, and no checkpoint's weights beside it."""
    if (folder / MANIFEST).is_file():
        return True
    denoisers = [folder / name for name in ("unet", "transformer")]
    return any((home / IR).is_file() and not any(home.glob("*.safetensors")) for home in denoisers)


def adopt(
    folder: Path,
    out: Path,
    *,
    origin: str | None = None,
    without_t5: bool = False,
    on_progress: OnProgress = lambda text, done, total: None,
) -> Artifact:
    """Copy a converted model to the model folder `out`, which must not exist or be empty.

    An artifact is copied and verified. A folder of optimum-intel gets its tokenizers written anew and a
    manifest made of its configurations; its networks stay as they are.
    origin: what the manifest calls the source; the folder's name by default.

    `out` appears complete or not at all. Raises CheckpointError or ArtifactError where the folder cannot be
    used, InvalidRequest for `out` or an artifact with a T5 that should go, SfumatoError for a full disk.
    """
    if (folder / MANIFEST).is_file():
        return _copy(folder, out, without_t5, on_progress)
    return _seal(folder, out, origin or folder.resolve().name, without_t5, on_progress)


def _copy(folder: Path, out: Path, without_t5: bool, on_progress: OnProgress) -> Artifact:
    manifest = load_manifest(folder)
    if without_t5 and any(info.kind == "t5" for info in manifest.components.values()):
        raise InvalidRequest(f"{folder}: converted with T5 already; convert the checkpoint it was made of")
    check_space(out, manifest.bytes)
    with write_artifact(out) as copy:
        on_progress("copying", 0, 2)
        for name in (*manifest.files, MANIFEST):
            _copy_file(folder, folder / name, copy / name)
        on_progress("verifying", 1, 2)
        verify(copy)
    return load_artifact(out)


def _seal(folder: Path, out: Path, origin: str, without_t5: bool, on_progress: OnProgress) -> Artifact:
    from .layout import write_model

    model = _open(folder, without_t5)
    precisions = {each.name: _check_network(model, each) for each in model.components}
    check_space(out, sum((folder / each.name / WEIGHTS).stat().st_size for each in model.components))

    def copy(component: Component, target: Path) -> None:
        for name in FILES:
            _copy_file(folder, folder / component.name / name, target / name)

    return write_model(
        model,
        out,
        copy,
        lambda: _hashes(model),
        doing="copying",
        name=origin,
        precision=precisions[model.family.denoiser],
        on_progress=on_progress,
    )


def _open(folder: Path, without_t5: bool) -> Checkpoint:
    """The folder as a checkpoint, whose weights are those of the networks. Raises CheckpointError."""
    index = read_json(folder / "model_index.json", folder)
    index["_class_name"] = str(index.get("_class_name")).removeprefix("OV")  # as optimum-intel names its own
    family = family_of(folder, index)
    components = tuple(each for each in family.components if _present(folder, each, without_t5))
    parts = {part_name(each): _part(folder, each) for each in components}
    tokenizers = tokenizers_of(folder, index, components)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", folder)
    return Checkpoint(folder, family, index, components, parts, tokenizers, scheduler)


def _present(folder: Path, component: Component, without_t5: bool) -> bool:
    present = (folder / component.name / IR).is_file()
    if not present and not component.optional:
        raise CheckpointError(f"{folder}: {component.name}/{IR} is missing; download the model again")
    return present and not (without_t5 and component.kind == "t5")


def _part(folder: Path, component: Component) -> Part:
    home = folder / component.name
    config = read_json(home / "config.json", folder)
    if not inside(home / WEIGHTS, folder).is_file():
        raise CheckpointError(f"{home / WEIGHTS}: missing; download the model again")
    return Part(part_name(component), CLASSES[component.kind], home, config, tensors={})


def _hashes(model: Checkpoint) -> dict[str, str]:
    """The SHA-256 of every network's weights."""
    files = [f"{component.name}/{WEIGHTS}" for component in model.components]
    return {file: hash_file(model.folder / file) for file in files}


def _check_network(model: Checkpoint, component: Component) -> str:
    """The precision of a network's weights, once its inputs and outputs are those that the runtime knows."""
    path = inside(model.folder / component.name / IR, model.folder)
    try:
        network = core().read_model(path)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        raise CheckpointError(f"{path}: cannot be read ({reason}); download the model again") from error
    inputs, outputs = (
        {name for port in ports for name in port.get_names()} for ports in (network.inputs, network.outputs)
    )
    expected = _inputs(model, component)
    needed = set(OUTPUTS[component.kind])
    if component.kind in CLIP_KINDS:
        layers = model.part_of(component).config.get("num_hidden_layers", 12)
        needed.add(f"hidden_states.{layers - 1}")
    if odd := sorted(inputs ^ expected | needed - outputs):
        raise CheckpointError(
            f"{path}: its inputs and outputs are others than here ({', '.join(odd)}); convert the checkpoint "
            "that it was made of"
        )
    for port in network.inputs:
        shape = port.partial_shape
        fixed = (
            shape.rank.is_static
            and shape.rank.get_length() == 4
            and any(shape[axis].is_static for axis in (0, 2, 3))
        )
        if fixed:
            raise CheckpointError(
                f"{path}: made for one picture size only ({port.get_any_name()} is {shape}); convert the "
                "checkpoint that it was made of"
            )
    return _precision(network)


def _inputs(model: Checkpoint, component: Component) -> set[str]:
    if component.kind != "unet":
        return INPUTS[component.kind]
    xl = model.family.name == "sdxl"
    embedded = guidance_embedding_dim(model.part_of(component).config) is not None
    further = (SDXL_INPUTS if xl else set()) | (GUIDANCE_INPUTS if embedded else set())
    return INPUTS[component.kind] | further


def _precision(network: Any) -> str:
    """What most bytes of the weights are stored as."""
    sizes: dict[str, int] = {}
    for node in network.get_ops():
        if node.get_type_name() == "Constant":
            kind = node.get_element_type().get_type_name()
            sizes[kind] = sizes.get(kind, 0) + node.get_byte_size()
    largest = max((kind for kind in sizes if kind in PRECISIONS), key=lambda kind: sizes[kind], default="f32")
    return PRECISIONS[largest]


def _copy_file(root: Path, source: Path, target: Path) -> None:
    """Copy one file, through the links of the Hub's cache but not out of it."""
    inside(source, root)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
