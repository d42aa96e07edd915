"""The trained models as they ship: whole, small enough, and the same pictures in OpenVINO GenAI."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from diffusers import AutoencoderKL

from sfumato import Pipeline, convert
from sfumato.artifact import embedded_models, verify
from sfumato.compare.fidelity import psnr

ROOT = Path(__file__).parents[1]
CHECKPOINTS = ROOT / "models"
NAMES = sorted(path.parent.name for path in CHECKPOINTS.glob("*/model_index.json"))
REFINERS = {
    name for name in NAMES if "Img2Img" in (CHECKPOINTS / name / "model_index.json").read_text("utf-8")
}
LORAS = {path.parent.name: path for path in CHECKPOINTS.glob("*/pytorch_lora_weights.safetensors")}
VAE = CHECKPOINTS / "mini/vae"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """An artifact by name: the one that ships, else converted from its checkpoint."""
    root = tmp_path_factory.mktemp("models")

    @cache
    def find(name: str) -> Path:
        if name in embedded_models():
            return embedded_models()[name]
        convert(CHECKPOINTS / name, root / name, vae=None if (CHECKPOINTS / name / "vae").is_dir() else VAE)
        return root / name

    return find


def test_all_checkpoints_fit_160_megabytes():
    assert {"mini", "mini-sd", "mini-vega", "mini-xl", "mini-xl-refiner"} == set(NAMES)
    assert sum(path.stat().st_size for path in CHECKPOINTS.rglob("*.safetensors")) < 160 * MEGABYTE


@pytest.mark.parametrize("name", NAMES)
def test_checkpoint_has_a_card_and_fits_40_megabytes(name):
    files = (CHECKPOINTS / name).rglob("*.safetensors")
    assert sum(path.stat().st_size for path in files) < 40 * MEGABYTE
    card = (CHECKPOINTS / name / "README.md").read_text()
    for word in ("Apache-2.0", "MIT", "make train", "images"):
        assert word in card


def test_checkpoints_share_one_autoencoder():
    weights = {
        (CHECKPOINTS / name / "vae/diffusion_pytorch_model.safetensors").read_bytes()
        for name in NAMES
        if name not in REFINERS  # which are converted with that of mini
    }
    assert len(weights) == 1
    assert AutoencoderKL.from_pretrained(CHECKPOINTS / "mini" / "vae").config.latent_channels == 12


def test_the_shipped_artifact_is_the_checkpoint_converted(tmp_path):
    shipped = verify(embedded_models()["mini"])
    rebuilt = convert(CHECKPOINTS / "mini", tmp_path / "mini", without_t5=True).manifest
    assert rebuilt.source == shipped.source
    assert rebuilt.sampling == shipped.sampling and rebuilt.latents == shipped.latents


# What a person sees on white: the channel that stands out, and those that it stands out from.
COLOURS = [
    ("mini", "noto red apple", 0, (1, 2)),
    ("mini", "noto blue heart", 2, (0,)),
    ("mini", "noto grinning face", 0, (2,)),
    ("mini", "flat cactus", 1, (0, 2)),
    ("mini-sd", "flat cactus", 1, (2,)),
    ("mini-sd", "flat red heart", 0, (1, 2)),
    ("mini-sd", "blob cat face", 0, (2,)),
    ("mini-xl", "flat red heart", 0, (1, 2)),
    ("mini-xl", "noto grinning face", 0, (2,)),
    ("mini-vega", "flat red heart", 0, (1, 2)),
]


@pytest.mark.parametrize(("name", "prompt", "strong", "weak"), COLOURS)
def test_the_prompt_decides(name, prompt, strong, weak, model):
    pipe = Pipeline.load(model(name))
    picture, other = (
        np.asarray(pipe(text, seed=7).images[0], np.float64) for text in (prompt, "fluent cloud")
    )
    assert _hue_share(picture, strong, weak) > 0.1
    assert _hue_share(picture, strong, weak) > 2 * _hue_share(other, strong, weak)


@pytest.mark.parametrize("name", sorted(LORAS))
def test_four_steps_with_the_lora_are_enough(name, tmp_path):
    """The LoRA says how it is sampled; without it, four steps are the beginning of a picture."""
    checkpoint = CHECKPOINTS / name.removesuffix("-lora")
    pipe = Pipeline.load(convert(checkpoint, tmp_path / name, loras=[(LORAS[name], 1.0)]).path)
    results = [pipe(prompt, seed=7) for prompt in ("flat red heart", "fluent cloud")]
    assert results[0].request.steps == 4
    assert not results[0].request.guided
    heart, cloud = (np.asarray(result.images[0], np.float64) for result in results)
    assert _hue_share(heart, 0, (1, 2)) > 0.2 > 2 * _hue_share(cloud, 0, (1, 2))


def _hue_share(picture: np.ndarray, strong: int, weak: tuple[int, ...]) -> float:
    """Share of the pixels in which one channel is clearly above all of the others named."""
    return float(np.all([picture[..., strong] > picture[..., other] + 60 for other in weak], axis=0).mean())


@pytest.mark.parametrize("name", sorted({*NAMES} - REFINERS))
def test_openvino_genai_makes_the_same_picture(name, model):
    referee = pytest.importorskip("referee")  # absent where openvino_genai is
    latents = np.random.default_rng(3).standard_normal((1, 12, 16, 16)).astype(np.float32)
    settings = {"steps": 8, "guidance": 4.0}
    reference = referee.genai_picture(model(name), "noto red apple", latents, negative="", **settings)
    ours = Pipeline.load(model(name), precision="f32")(
        "noto red apple", negative_prompt="", latents=latents, **settings
    )
    assert referee.psnr(ours.images[0], reference) >= 30


def test_the_tiny_decoder_makes_nearly_the_same_picture(model, tmp_path):
    """As OpenVINO GenAI makes it, too: it reads the folder without knowing whose decoder this is."""
    convert(CHECKPOINTS / "mini", tmp_path / "mini", without_t5=True, tiny_decoder=CHECKPOINTS / "tiny-vae")
    latents = np.random.default_rng(3).standard_normal((1, 12, 16, 16)).astype(np.float32)
    settings = {"steps": 8, "guidance": 4.0}
    whole, tiny = (
        Pipeline.load(folder, precision="f32")(
            "noto red apple", negative_prompt="", latents=latents, **settings
        ).images[0]
        for folder in (model("mini"), tmp_path / "mini")
    )
    assert 25 < psnr(np.asarray(whole), np.asarray(tiny)) < 50
    referee = pytest.importorskip("referee")  # absent where openvino_genai is
    theirs = referee.genai_picture(tmp_path / "mini", "noto red apple", latents, negative="", **settings)
    assert referee.psnr(tiny, theirs) >= 30


def test_the_refiner_changes_little_and_knows_what_the_prompt_was(model):
    base, refiner = (Pipeline.load(model(name)) for name in ("mini-xl", "mini-xl-refiner"))
    alone, refined, other = (
        np.asarray(picture, np.float64)
        for picture in (
            base("noto red heart", seed=7).images[0],
            base("noto red heart", seed=7, refiner=refiner).images[0],
            base("noto blue heart", seed=7).images[0],
        )
    )
    assert 0 < np.abs(refined - alone).mean() < np.abs(other - alone).mean() / 2
