"""Training of an embedded diffusion model on cached latents, with captions drawn anew for every batch."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato.errors import InvalidRequest
from sfumato.files import atomic_file
from sfumato.train.embedded import captions, dataset
from sfumato.train.embedded.autoencoder import encode
from sfumato.train.embedded.group_norm import use_channels_last
from sfumato.train.embedded.models import MODELS, Trainable, save
from sfumato.train.embedded.state import Ema, Log, cosine, load_checkpoint, save_checkpoint

# Flash attention's backward takes 30 to 40 percent of a step on a CPU (PyTorch 2.13, 96 to 256 tokens).
ATTENTION = SDPBackend.MATH
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
class Plan:
    """Length, rates and curriculum of a run.

    common_share: this share of the draws goes to common concepts. words: where given, only pictures whose
        concept has one of these words are drawn, each word as often.
    stop_at: end at this step, before the planned length; the run can be resumed.
    """

    steps: int
    stop_at: int | None = None
    batch: int = 32
    rate: float = 1e-3
    matrix_rate: float = 2e-2
    common_share: float = 0.8
    words: tuple[str, ...] = ()
    caption_dropout: float = 0.1
    ema_decay: float = 0.998
    seed: int = 0
    save_every: int = 200
    sample_every: int = 1000


def train(
    name: str, data: Path, vae_folder: Path, out: Path, plan: Plan, say: Callable[[str], None] = print
) -> None:
    """Train the embedded model `name` and write its diffusers folder to `out/model`.

    Resumes from `out/checkpoint.pt`: batches, captions and noise are functions of the seed and the step.
    Sample grids go to `out/samples-STEP.png`.
    """
    if name not in MODELS:
        raise InvalidRequest(f"unknown embedded model {name!r}; known: {', '.join(MODELS)}")
    out.mkdir(parents=True, exist_ok=True)
    pictures, records = dataset.load(data)
    rows = dataset.indices(records, "train")
    records = [records[i] for i in rows]
    vae = AutoencoderKL.from_pretrained(vae_folder)
    use_channels_last(vae)
    latents = _cached_latents(vae, pictures, rows, out)
    torch.manual_seed(plan.seed)
    model = MODELS[name](captions.corpus(records))
    optimizers = _optimizers(model, plan)
    ema = Ema(model, plan.ema_decay)
    parts = {"model": model, "ema": ema, **{f"optimizer_{i}": o for i, o in enumerate(optimizers)}}
    checkpoint = out / "checkpoint.pt"
    first = load_checkpoint(checkpoint, parts)
    if plan.words:
        chances = captions.word_weights(records, plan.words)
    else:
        chances = captions.weights(records, plan.common_share)
    log = Log(out, plan.steps, plan.batch, say)
    last = min(plan.steps, plan.stop_at or plan.steps)
    for step in range(first, last):
        rng = np.random.default_rng((plan.seed, step))
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        picks = rng.choice(len(records), plan.batch, p=chances)
        texts = [
            "" if rng.random() < plan.caption_dropout else captions.caption(records[i], rng) for i in picks
        ]
        _begin_step(optimizers, step, plan.steps)
        with sdpa_kernel(ATTENTION):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model.loss(latents[picks], texts, generator)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        ema.update(model)
        log.add(step, 50, loss=loss.detach())
        if (step + 1) % plan.save_every == 0 or step + 1 == last:
            save_checkpoint(checkpoint, {"step": step + 1, **{k: v.state_dict() for k, v in parts.items()}})
        if (step + 1) % plan.sample_every == 0:
            with Averaged(model, ema):
                sample_grid(model, vae, SAMPLE_PROMPTS).save(out / f"samples-{step + 1}.png")
    ema.copy_to(model)
    save(model, vae, out / "model")


def _begin_step(optimizers: list[torch.optim.Optimizer], step: int, steps: int) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, group["initial_lr"])
        optimizer.zero_grad()


class Averaged:
    """Context in which `model` holds the averaged weights."""

    def __init__(self, model: nn.Module, ema: Ema) -> None:
        self.model, self.ema = model, ema

    def __enter__(self) -> None:
        self.kept = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.ema.copy_to(self.model)

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for name, p in self.model.named_parameters():
            p.copy_(self.kept[name])


@torch.no_grad()
def sample_grid(
    model: Trainable, vae: AutoencoderKL, prompts: tuple[str, ...], steps: int = 20, guidance: float = 4.0
) -> Image.Image:
    """One picture for each prompt, side by side, in rows of eight."""
    pipe = model.pipeline(vae)
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


def _cached_latents(vae: AutoencoderKL, pictures: np.ndarray, rows: np.ndarray, out: Path) -> Tensor:
    """Scaled latents of the pictures at `rows`, kept in `out` under a name that says what they depend on."""
    digest = hashlib.sha256(pictures[rows].tobytes())
    for p in vae.encoder.parameters():
        digest.update(p.detach().contiguous().numpy().tobytes())
    path = out / f"latents-{digest.hexdigest()[:16]}.pt"
    if path.exists():
        latents: Tensor = torch.load(path, weights_only=True)
        return latents
    latents = encode(vae, pictures[rows]) * vae.config.scaling_factor
    with atomic_file(path) as partial:
        torch.save(latents, partial)
    return latents


def _optimizers(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the transformer's matrices, AdamW for everything else."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        in_block = "transformer_blocks" in name and name.startswith("denoiser")
        (matrices if in_block and p.ndim == 2 else rest).append(p)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=plan.matrix_rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers
