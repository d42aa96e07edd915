"""Reports that were not measured, and pictures that no model made: what comparisons are tested with."""

from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.compare.records import (
    Environment,
    Fidelity,
    Measured,
    Model,
    Recall,
    Report,
    Sample,
    Speed,
    Timing,
)

SIDE = 48


def model(name: str, **fields: object) -> Model:
    return Model(
        **{
            "name": name,
            "source": name,
            "kind": "artifact",
            "family": "sd3",
            "precision": "fp16",
            "components": {"text_encoder": 1_000_000, "transformer": 16_000_000, "vae_decoder": 5_000_000},
            "disk_bytes": 22_500_000,
            "size": (SIDE, SIDE),
            "steps": 20,
            "guidance": 4.0,
        }
        | fields
    )


def speed(factor: float = 1.0) -> Speed:
    def timing(seconds: float) -> Timing:
        return Timing.of([seconds / factor * (1 + 0.02 * run) for run in range(5)])

    return Speed(
        seconds={
            "load": Timing.of([1.5]),
            "encode": timing(0.002),
            "step": timing(0.01),
            "denoise": timing(0.2),
            "decode": timing(0.03),
            "total": timing(0.24),
        },
        components={"transformer": timing(0.19), "vae_decoder": timing(0.03)},
        peak_memory_bytes=210_000_000,
    )


def picture(path: Path, seed: int, noise: int) -> None:
    """The same smooth picture for one seed, with as much noise as is asked for."""
    path.parent.mkdir(exist_ok=True)
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    base = np.stack([x * 4, y * 4, (x + y + 20 * seed) * 2], -1) % 200 + 20
    random = np.random.default_rng(seed).integers(-noise, noise + 1, base.shape)
    Image.fromarray((base + random).astype(np.uint8)).save(path)


def make_report(
    folder: Path,
    names: tuple[str, ...] = ("float", "int8"),
    prompts: tuple[str, ...] = ("noto red apple", "fluent smiling cat"),
    **fields: object,
) -> tuple[Report, Path]:
    """A report and the folder with its pictures, the later the noisier."""
    folder.mkdir()
    samples = []
    for index, prompt in enumerate(prompts):
        files = {name: f"pictures/{index}-{place}.png" for place, name in enumerate(names)}
        for place, file in enumerate(files.values()):
            picture(folder / file, index, 4 * place)
        samples.append(Sample(prompt=prompt, seed=index, pictures=files))
    measured = [
        Measured(
            model=model(name),
            speed=speed(1 + 0.6 * place),
            compression={"total": 1.9, "transformer": 1.95} if place else {},
            speedup={"total": 1 + 0.6 * place, "step": 1.7, "decode": 1.0} if place else {},
            fidelity=Fidelity(
                psnr=31.0, psnr_worst=28.2, ssim=0.95 - 0.02 * place, ssim_worst=0.9, distance=0.05
            )
            if place
            else None,
            recall=Recall(r1=0.9, r5=1.0, style=0.8),
        )
        for place, name in enumerate(names)
    ]
    report = Report(
        **{
            "command": "sfumato compare float int8 -o report",
            "environment": Environment(
                processor="A processor",
                cores=2,
                memory_bytes=8_000_000_000,
                system="Linux",
                python="3.11",
                packages={"sfumato": "0.1.0"},
                date="2026-01-31T12:00:00+00:00",
            ),
            "steps": 20,
            "guidance": 4.0,
            "size": (SIDE, SIDE),
            "runs": 5,
            "reference": names[0],
            "models": measured,
            "samples": samples,
            "notes": ("A note.",),
        }
        | fields
    )
    return report, folder
