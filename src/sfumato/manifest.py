"""What `sfumato.json` may say: everything that the runtime knows about a model folder."""

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from . import __version__
from .families import ConditioningSettings, Kind

FORMAT: Literal[1] = 1
Captions = Literal["general", "icons"]
Reuse = Literal["off", "balanced", "fast"]
"""What steps take over from steps before; see `runtime.reuse`."""
MOST_GUIDANCE_EVERY = 16


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    plain = path.isprintable() and not any(character in path for character in "\\:")
    if not plain or not parts or path.startswith("/") or ".." in parts:
        raise ValueError("not a plain path inside the folder")
    return path


# Limits far above every known model, for folders that come from strangers.
RelativePath = Annotated[str, AfterValidator(_inside)]
Count = Annotated[int, Field(ge=1, le=4096)]
Side = Annotated[int, Field(ge=1, le=8192)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Coefficient = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ComponentInfo(_Strict):
    """One network of the folder, under `<name>/openvino_model.xml` and `.bin`.

    tokenizer, max_tokens: text encoders' tokenizer folder and fixed input length.
    hidden_states: how many `hidden_states.N` outputs a CLIP encoder has (layers + 1).
    """

    kind: Kind
    tokenizer: RelativePath | None = None
    max_tokens: Count | None = None
    hidden_states: Annotated[int, Field(ge=2, le=1000)] | None = None


class LatentSpace(_Strict):
    """The VAE's latents: model latents = (VAE latents - shift) * scale; one latent is factor x factor pixels.

    size_multiple: both sides of a picture are multiples of it; itself a multiple of factor.
    default_size: width and height of a picture when none is asked for.
    largest_side: of a picture, in pixels, for which the denoiser has positions; None: it needs none.
    preview: [channels + 1][3] coefficients that give about the colour of a latent's pixels, in 0..1, from its
        channels in the model's scale and, in the last row, a constant; None where the encoder is missing.
    """

    channels: Count
    factor: Count
    scale: Scale
    shift: Finite = 0.0
    size_multiple: Count
    default_size: tuple[Side, Side]
    largest_side: Side | None = None
    preview: tuple[tuple[Coefficient, Coefficient, Coefficient], ...] | None = None

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.size_multiple % self.factor:
            raise ValueError(f"size_multiple {self.size_multiple} is no multiple of factor {self.factor}")
        if any(side % self.size_multiple for side in self.default_size):
            raise ValueError(f"default_size {self.default_size} is not in multiples of {self.size_multiple}")
        if self.preview is not None and len(self.preview) != self.channels + 1:
            raise ValueError(f"preview has {len(self.preview)} rows, not {self.channels + 1}")
        return self


class Sampling(_Strict):
    """The sampling that the checkpoint asks for; `scheduler` is its configuration in diffusers' terms.

    Keys of `scheduler` that no sampler knows are ignored; values are checked by the sampler that uses them.
    reuse: what steps take over from steps before, unless a request says otherwise. guidance_every: the
    negative prompt runs in one of so many guided steps after the first few. key_steps: where reuse has its
    key steps, as shares of the schedule, fitted to this model.
    """

    sampler: str
    prediction: Literal["epsilon", "v_prediction", "flow"]
    steps: Steps
    guidance: Finite
    scheduler: dict[str, JsonValue]
    reuse: Reuse = "off"
    guidance_every: Annotated[int, Field(ge=1, le=MOST_GUIDANCE_EVERY)] = 1
    key_steps: dict[Reuse, tuple[Annotated[float, Field(ge=0, lt=1)], ...]] = {}


class FileInfo(_Strict):
    """Size and SHA-256 of one file."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class LoraInfo(_Strict):
    """A LoRA that was fused into the weights."""

    file: str
    scale: Finite


class AppliedRecipe(_Strict):
    """The recipe that made this model from another one.

    text: the recipe in TOML. samples: runs of the denoiser that it took, captions: the SHA-256 of the
    captions they came from; none where it took no samples. kept: by component, the layers that a search left
    in floating point. trained: the denoiser's weights and ranges come from quantization-aware training.
    """

    name: str
    text: str
    samples: Annotated[int, Field(ge=0)] = 0
    captions: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    kept: dict[RelativePath, tuple[str, ...]] = {}
    trained: bool = False


class MergedTokens(_Strict):
    """How the denoiser's self-attention merges tokens (see sfumato.graphs.token_merging)."""

    ratio: Annotated[float, Field(gt=0, le=0.75)]
    method: Literal["match", "pool"] = "match"


class Manifest(_Strict):
    """Everything the runtime knows about a model folder.

    precision: how weights are stored, or the name of the recipe.
    token_merging: None where the denoiser works on all tokens.
    inpainting: the denoiser takes a mask and the latents of the masked picture besides the latents.
    captions: which of the captions that ship suit the model.
    """

    format: Literal[1] = FORMAT
    sfumato: str = __version__
    name: str
    family: str
    source: dict[str, str] = {}
    precision: str
    recipe: AppliedRecipe | None = None
    loras: tuple[LoraInfo, ...] = ()
    token_merging: MergedTokens | None = None
    components: dict[RelativePath, ComponentInfo]
    latents: LatentSpace
    inpainting: bool = False
    sampling: Sampling
    conditioning: ConditioningSettings = ConditioningSettings()
    captions: Captions = "general"
    files: dict[RelativePath, FileInfo]

    @property
    def bytes(self) -> int:
        """What the model takes on disk, without the manifest."""
        return sum(info.bytes for info in self.files.values())
