"""What a comparison and a benchmark say: the schema of `report.json`, and what the pages are drawn from."""

from statistics import median, quantiles
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from ..manifest import Reuse

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Timing(_Record):
    """Wall times of the runs that count, in seconds; low and high are their quartiles."""

    median: Seconds
    low: Seconds
    high: Seconds
    runs: tuple[Seconds, ...]

    @classmethod
    def of(cls, runs: list[float]) -> Self:
        """Summarise one run or more."""
        low, _, high = quantiles(runs, n=4, method="inclusive") if len(runs) > 1 else (runs[0],) * 3
        return cls(median=median(runs), low=low, high=high, runs=tuple(runs))


class Model(_Record):
    """A model that takes part, before anything is measured.

    name: unique in the comparison. source: what the command named. kind: a model folder, or a checkpoint in
    PyTorch float32. precision: how weights are stored. recipe: the one that made it.
    components: bytes of each network's weights on disk. disk_bytes: of the whole model.
    size, steps, guidance: its defaults. latent_channels: None where it is not known.
    """

    name: str
    source: str
    kind: Literal["artifact", "torch"]
    family: str
    precision: str
    recipe: str | None = None
    components: dict[str, Bytes]
    disk_bytes: Bytes
    size: tuple[int, int]
    steps: int
    guidance: float
    latent_channels: int | None = None


class Run(_Record):
    """One picture's times. steps: of each step; components: of each network, all its calls together.

    reuse: what the steps took over from steps before. guidance_every: the negative prompt ran in one of so
    many steps.
    """

    encode: Seconds
    steps: tuple[Seconds, ...]
    denoise: Seconds
    decode: Seconds
    total: Seconds
    components: dict[str, Seconds] = {}
    reuse: Reuse = "off"
    guidance_every: int = 1


class Speed(_Record):
    """Seconds of each stage ("load" once, cold; "encode", "step", "denoise", "decode", "total" a picture).

    reuse, guidance_every: how the steps ran, as in `Run`.
    """

    seconds: dict[str, Timing]
    components: dict[str, Timing] = {}
    peak_memory_bytes: Bytes
    reuse: Reuse = "off"
    guidance_every: int = 1


class Fidelity(_Record):
    """A model's pictures against the reference's, at the same prompts and seeds: means, and the worst.

    psnr in dB, of the pictures that differ (None where all are equal); ssim up to 1; distance: LPIPS's
    measure (Zhang et al. 2018) in the layers of the evaluator that ships, 0 where equal. frechet: between the
    two sets' features.
    """

    psnr: float | None
    psnr_worst: float | None
    ssim: float
    ssim_worst: float
    distance: float
    frechet: float | None = None


class Recall(_Record):
    """The pictures against their prompts, by the evaluator: shares in 0..1. It knows icons only."""

    r1: float
    r5: float
    style: float


class Measured(_Record):
    """A model and all that was measured of it.

    compression: of each component and of "total", against the baseline's bytes. speedup: how many times
    faster than the baseline, for "step", "decode" and "total". fidelity: None for the reference itself.
    """

    model: Model
    speed: Speed
    compression: dict[str, float] = {}
    speedup: dict[str, float] = {}
    fidelity: Fidelity | None = None
    recall: Recall | None = None


class Sample(_Record):
    """One prompt and what each model made of it: file names beside the report, by the model's name."""

    prompt: str
    negative: str | None = None
    seed: int
    pictures: dict[str, str]


class Environment(_Record):
    """Where it was measured. packages: versions by name."""

    processor: str
    cores: int
    memory_bytes: Bytes
    system: str
    python: str
    packages: dict[str, str]
    date: str


class Report(_Record):
    """`report.json`. reference: the model that the others are held against.

    notes: what a reader must know, such as why a figure is missing.
    """

    format: Literal[1] = 1
    command: str
    environment: Environment
    steps: int
    guidance: float
    size: tuple[int, int]
    runs: int
    reference: str
    models: tuple[Measured, ...]
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
