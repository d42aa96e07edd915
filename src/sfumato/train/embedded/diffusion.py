"""Training of an embedded diffusion model on cached latents, with captions drawn anew for every batch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from sfumato.errors import InvalidRequest
from sfumato.runtime.png import save_png
from sfumato.train.compiled import compile_network
from sfumato.train.embedded import captions, dataset
from sfumato.train.embedded.autoencoder import load_autoencoder
from sfumato.train.embedded.group_norm import use_channels_last
from sfumato.train.embedded.latents import cached_latents
from sfumato.train.embedded.models import (
    SMALL,
    EmbeddedModel,
    Examples,
    MiniVega,
    Texts,
    known,
    save,
    start_from,
)
from sfumato.train.loop import Plan, Task, is_main, run

SAMPLE_PROMPTS = (
    "noto red apple",
    "fluent grinning face",
    "flat red heart",
    "blob cat face",
    "noto rocket",
    "fluent turtle",
    "firefox strawberry",
    "flat sunflower",
)


@dataclass(frozen=True)
class Lessons:
    """What the model is shown.

    common_share: this share of the draws goes to common concepts. words: where given, only pictures whose
        concept has one of these words are drawn, each word as often. small_share: pictures that were brought
        up from 64x64, for models with size conditioning.
    """

    common_share: float = 0.8
    words: tuple[str, ...] = ()
    caption_dropout: float = 0.1
    small_share: float = 0.1


class DiffusionTask(Task):
    """An embedded model with the pictures that it learns from."""

    def __init__(
        self,
        model: EmbeddedModel,
        lessons: Lessons,
        records: list[dataset.Record],
        latents: Tensor,
        small_latents: Tensor | None,
    ) -> None:
        super().__init__()
        self.model, self.lessons, self.records = model, lessons, records
        self.latents, self.small_latents = latents, small_latents
        if lessons.words:
            self.chances = captions.word_weights(records, lessons.words)
        else:
            self.chances = captions.weights(records, lessons.common_share)

    def draw(self, size: int, rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, ...]:
        picks = rng.choice(len(self.records), size, p=self.chances)
        texts = [
            "" if rng.random() < self.lessons.caption_dropout else captions.caption(self.records[i], rng)
            for i in picks
        ]
        latents = self.latents[picks]
        sides = torch.full((size,), dataset.SIDE)
        if self.small_latents is not None:
            small = torch.from_numpy(rng.random(size) < self.lessons.small_share)
            latents = torch.where(small[:, None, None, None], self.small_latents[picks], latents)
            sides = torch.where(small, SMALL, sides)
        return self.model.draw(Examples(latents, texts, sides), generator)

    def forward(self, *batch: Tensor) -> dict[str, Tensor]:
        figures: dict[str, Tensor] = self.model(*batch)
        return figures

    def matrices(self) -> list[nn.Parameter]:
        return self.model.matrices()


def train(
    name: str,
    data: Path,
    vae_folder: Path,
    out: Path,
    plan: Plan,
    lessons: Lessons,
    start: tuple[Path, ...] = (),
    teacher: Path | None = None,
    say: Callable[[str], None] = print,
    fused: bool = False,
) -> None:
    """Train the embedded model `name` and write its diffusers folder to `out/model`.

    start: checkpoints whose tensors of the same name and shape the model begins with, the first over the
    later ones. teacher: for `mini-vega`, the `mini-xl` that it copies. fused: compile the denoiser
    (see `compile_network`, for what it raises, too), which makes an MMDiT's steps faster. Resumes from
    `out/checkpoint.pt`; sample grids go to `out/samples-STEP.png`.
    """
    kind = known(name)
    pictures, records = dataset.load(data)
    rows = dataset.indices(records, "train")
    records = [records[i] for i in rows]
    torch.manual_seed(plan.seed)
    model = kind(Texts(captions.corpus(records), start[0] if start else teacher))
    for checkpoint in reversed(start):
        say(f"{start_from(model, checkpoint):.0%} of the weights begin as in {checkpoint}")
    if teacher is not None:
        _teach(model, teacher, say)
    if fused:
        compile_network(model.denoiser)
    vae = load_autoencoder(vae_folder)
    use_channels_last(vae)
    latents = cached_latents(vae, pictures, rows, out)
    small = None
    if kind.sized:
        small = cached_latents(vae, brought_up(pictures[rows]), np.arange(len(rows)), out)
    task = DiffusionTask(model, lessons, records, latents, small)

    def sample(step: int) -> None:
        with torch.compiler.set_stance("force_eager"):  # a few pictures are no reason to compile once more
            grid = sample_grid(model, vae, SAMPLE_PROMPTS)
        save_png(grid, out / f"samples-{step}.png")

    run(task, plan, out, say, sample if kind.text_to_image else None)
    if is_main():
        save(model, vae, out / "model")


def _teach(model: EmbeddedModel, folder: Path, say: Callable[[str], None]) -> None:
    if not isinstance(model, MiniVega):
        raise InvalidRequest("only mini-vega has a teacher; leave --teacher out")
    teacher = known("mini-xl")(Texts([], folder))
    if start_from(teacher, folder) < 1:
        raise InvalidRequest(
            f"{folder}: not all weights of a mini-xl are in it; a teacher must be a whole one"
        )
    model.teach(teacher)


def brought_up(pictures: np.ndarray) -> np.ndarray:
    """The pictures (uint8 [n, 128, 128, 3]) as they look after a reduction to 64x64 and back."""
    side = dataset.SIDE
    small = (Image.fromarray(p).resize((SMALL, SMALL), Image.Resampling.BOX) for p in pictures)
    return np.stack([np.asarray(p.resize((side, side), Image.Resampling.BILINEAR)) for p in small])


@torch.no_grad()
def sample_grid(
    model: EmbeddedModel, vae: AutoencoderKL, prompts: tuple[str, ...], steps: int = 20, guidance: float = 4.0
) -> Image.Image:
    """One picture for each prompt, side by side, in rows of eight."""
    pipe = model.pipeline(vae).to(next(model.denoiser.parameters()).device)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    side = dataset.SIDE
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "height": side, "width": side}
    if model.t5_tokens:
        options["max_sequence_length"] = model.t5_tokens
    pictures = pipe(list(prompts), generator=generator, **options).images
    grid = Image.new("RGB", (side * min(8, len(pictures)), side * -(-len(pictures) // 8)), "white")
    for index, picture in enumerate(pictures):
        grid.paste(picture, (index % 8 * side, index // 8 * side))
    return grid
