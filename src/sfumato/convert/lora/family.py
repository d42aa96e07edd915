"""Which family a LoRA was made for, from its layers' names and widths."""

from collections.abc import Mapping
from pathlib import Path

from ...errors import CheckpointError
from .formats import RawLayer
from .places import locate, underscored

UNET_PATHS = (
    "down_blocks_",
    "mid_block_",
    "up_blocks_",
    "conv_in",
    "conv_out",
    "time_embedding_",
    "add_embedding_",
    "input_blocks_",
    "middle_block_",
    "output_blocks_",
    "time_embed_",
    "label_emb_",
    "out_2",
)
MMDIT_PATHS = (
    "transformer_blocks_",
    "pos_embed_",
    "time_text_embed_",
    "context_embedder",
    "norm_out_",
    "proj_out",
    "joint_blocks_",
    "x_embedder",
    "y_embedder",
    "t_embedder",
    "final_layer_",
)
FLUX_PATHS = ("double_blocks_", "single_blocks_", "single_transformer_blocks_")
DENOISERS = ("unet", "transformer")
CONTEXT_WIDTHS = {768: "sd", 1024: "sd", 1280: "sdxl", 2048: "sdxl"}


def check_family(file: Path, layers: Mapping[str, RawLayer], denoiser: str, family: str, stated: str) -> None:
    """Raise CheckpointError, naming both, for a LoRA of another family. stated: what its metadata says."""
    made_for = _made_for(layers, denoiser)
    if made_for in (None, family) or (made_for == "unet" and family in ("sd", "sdxl")):
        return
    described = "a UNet (sd or sdxl)" if made_for == "unet" else made_for
    raise CheckpointError(f"{file}: the LoRA was made for {described}, this checkpoint is {family}{stated}")


def _made_for(layers: Mapping[str, RawLayer], denoiser: str) -> str | None:
    """sd3, sd, sdxl, `unet` (one of these two), Flux, or nothing that the layers give away."""
    places = [(*locate(name, denoiser), layer) for name, layer in layers.items()]
    paths = [(part, underscored(path), layer) for part, path, layer in places]
    if any(part in DENOISERS and path.startswith(FLUX_PATHS) for part, path, _ in paths):
        return "Flux"
    found = set()
    for part, path, layer in paths:
        if part == "text_encoder_3" or (part in DENOISERS and path.startswith(MMDIT_PATHS)):
            return "sd3"
        if part in DENOISERS and path.startswith(UNET_PATHS):
            found.add("unet")
            if path.endswith("attn2_to_k") and layer.down.shape[1] in CONTEXT_WIDTHS:
                return CONTEXT_WIDTHS[layer.down.shape[1]]
        elif part == "text_encoder_2":
            found.add("second encoder")
    if found == {"unet", "second encoder"}:
        return "sdxl"
    return "unet" if "unet" in found else None
