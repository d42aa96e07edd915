"""The evaluator at run time: pictures and captions in one space, styles, features; OpenVINO, no PyTorch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer

from ..errors import ArtifactError, InvalidRequest
from ..files import hash_file
from ..manifest import FileInfo
from ..runtime.devices import Device, core
from .fidelity import frechet_distance, recall

MANIFEST, IMAGE, TEXT, TOKENIZER = "evaluator.json", "image.xml", "text.xml", "tokenizer.json"
OUTPUTS = ("embedding", "features", "style", "layer1", "layer2", "layer3", "layer4")
BATCH = 32

Array = NDArray[np.float32]
Pictures = Sequence[Image.Image] | NDArray[np.uint8]


class Manifest(BaseModel):
    """`evaluator.json`. side: the pictures' side that the network takes, in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1]
    styles: tuple[str, ...]
    side: Annotated[int, Field(ge=8, le=1024)]
    files: dict[str, FileInfo]


@dataclass(frozen=True)
class Reading:
    """What the evaluator sees in n pictures, float32.

    embedding: [n, 128], unit vectors, to be compared with captions' by their product.
    features: [n, 256], for Frechet distances. style: [n, styles], logits in the order of `Evaluator.styles`.
    """

    embedding: Array
    features: Array
    style: Array


@dataclass(frozen=True)
class Scores:
    """Figures of a set of pictures: recalls and style accuracy in 0..1; frechet against the real pictures."""

    r1: float
    r5: float
    style: float
    frechet: float


class Evaluator:
    """A dual encoder of pictures and captions that reads art in known styles.

    It computes in float32 everywhere, so that figures of two machines can be compared.
    """

    def __init__(self, folder: Path | None = None, threads: int | None = None) -> None:
        """Open `folder`, or the evaluator that ships. Raises ArtifactError naming what is damaged."""
        self.folder = folder or Path(str(files("sfumato"))) / "embedded" / "evaluator"
        manifest = _read(self.folder)
        self.styles = manifest.styles
        self._side = manifest.side
        device = Device("CPU", "f32", threads)
        self._image = core().compile_model(self.folder / IMAGE, device.name, device.options)
        self._text = core().compile_model(self.folder / TEXT, device.name, device.options)
        self._tokenizer = Tokenizer.from_file(str(self.folder / TOKENIZER))

    def read(self, pictures: Pictures) -> Reading:
        """What is seen in pictures of any size: PIL images, or uint8 [n, height, width, 3]."""
        parts = [[output[name] for name in OUTPUTS[:3]] for output in self._run(pictures)]
        return Reading(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def embed(self, captions: Sequence[str]) -> Array:
        """Unit embeddings (float32 [n, 128]) of captions; words past the sixteenth token are not read."""
        encodings = self._tokenizer.encode_batch(list(captions))
        ids = np.array([encoding.ids for encoding in encodings], np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], np.int64)
        return np.asarray(self._text({"ids": ids, "mask": mask})[0], np.float32)

    def distance(self, a: Pictures, b: Pictures) -> NDArray[np.float64]:
        """Perceptual distance (float64 [n], 0 where equal) of pictures in pairs.

        LPIPS (Zhang et al. 2018) without its learned weights, in this network: squared difference of the four
        stages' activations, scaled to unit length over channels, averaged over positions, summed over stages.
        """
        if len(a) != len(b):
            raise InvalidRequest(f"{len(a)} and {len(b)} pictures: pairs need as many of both")
        parts = []
        for first, second in zip(self._run(a), self._run(b), strict=True):
            stages = [_unit_channels(first[name]) - _unit_channels(second[name]) for name in OUTPUTS[3:]]
            parts.append(sum(np.square(stage).sum(1, dtype=np.float64).mean((1, 2)) for stage in stages))
        return np.concatenate(parts)

    def score(self, seen: Reading, captions: Sequence[str], styles: Sequence[str], real: Reading) -> Scores:
        """Figures of pictures made for `captions`, each in one of `styles`, beside real pictures."""
        counts = len(seen.style), len(captions), len(styles)
        if len(set(counts)) > 1:
            raise InvalidRequest("{} pictures, {} captions, {} styles: give one of each".format(*counts))
        unknown = sorted(set(styles) - set(self.styles))
        if unknown:
            raise InvalidRequest(f"style {unknown[0]!r}: the evaluator knows {', '.join(self.styles)}")
        texts = self.embed(captions)
        wanted = np.array([self.styles.index(style) for style in styles])
        return Scores(
            r1=recall(seen.embedding, texts, list(captions), 1),
            r5=recall(seen.embedding, texts, list(captions), 5),
            style=float(np.mean(seen.style.argmax(1) == wanted)),
            frechet=frechet_distance(seen.features, real.features),
        )

    def _run(self, pictures: Pictures) -> Iterator[dict[str, Array]]:
        if not len(pictures):
            raise InvalidRequest("no pictures to read; give one or more")
        for begin in range(0, len(pictures), BATCH):
            batch = np.stack([_pixels(picture, self._side) for picture in pictures[begin : begin + BATCH]])
            results = self._image(batch.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
            yield {name: np.array(results[name], np.float32) for name in OUTPUTS}


def _read(folder: Path) -> Manifest:
    """The manifest, once every file is found to be what it says."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        for name in (IMAGE, TEXT, TOKENIZER):
            if name not in manifest.files:
                raise ArtifactError(f"{folder / MANIFEST}: {name} is missing from the list of files")
        for name, info in manifest.files.items():
            if hash_file(folder / name) != info.sha256:
                raise ArtifactError(f"{folder / name}: damaged or changed (its SHA-256 is another)")
    except ValidationError as error:
        raise ArtifactError(
            f"{folder / MANIFEST}: not an evaluator's manifest ({error.errors()[0]['msg']})"
        ) from error
    except OSError as error:
        raise ArtifactError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return manifest


def _pixels(picture: Any, side: int) -> NDArray[np.uint8]:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image.convert("RGB"))


def _unit_channels(layer: Array) -> Array:
    return np.asarray(layer / np.sqrt(np.square(layer).sum(1, keepdims=True) + 1e-10), np.float32)
