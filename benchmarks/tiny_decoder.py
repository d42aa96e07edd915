"""What a TAESD saves: the time and memory of its decoder beside those of a checkpoint's own.

    python benchmarks/tiny_decoder.py checkpoints/sd15 --side 512
    python benchmarks/tiny_decoder.py models/mini --tiny models/tiny-vae --side 128

Without --tiny: one of TAESD's published configuration with random weights, which take as long. Each decoder
runs in fresh processes, in turns with the other, at the precision that OpenVINO chooses by itself; medians of
the runs after the first. Memory: the process's peak, less what it had before the network was read.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from sfumato.errors import SfumatoError
from sfumato.peak import peak_memory
from sfumato.runtime.devices import Device, core


def random_taesd(channels: int, folder: Path) -> Path:
    from diffusers import AutoencoderTiny

    AutoencoderTiny(latent_channels=channels).save_pretrained(folder)
    return folder


def exported(checkpoint: Path, tiny: Path | None, work: Path) -> tuple[dict[str, Path], int, int]:
    """Both decoders' graphs by name; the latents' channels, and pixels to a latent's side."""
    from sfumato.convert.checkpoints import open_checkpoint
    from sfumato.convert.components import export
    from sfumato.convert.defaults import latent_space
    from sfumato.convert.layout import quiet_libraries
    from sfumato.convert.tiny_decoder import open_tiny_decoder
    from sfumato.convert.weights import load_module

    opened = open_checkpoint(checkpoint)
    vae = opened.parts["vae"]
    space = latent_space(opened.family, opened.parts[opened.family.denoiser].config, vae.config)
    graphs = {name: work / name / "openvino_model.xml" for name in ("own", "tiny")}
    with quiet_libraries():
        folder = tiny or random_taesd(space.channels, work / "taesd")
        for xml, part in zip(graphs.values(), (vae, open_tiny_decoder(folder, vae)), strict=True):
            export("vae_decoder", load_module(part), xml, "fp16", lambda: None)
    return graphs, space.channels, space.factor


def timed(xml: Path, shape: tuple[int, ...], runs: int, threads: int | None) -> tuple[float, int]:
    """The median seconds of a run, and the peak in bytes."""
    device = Device("CPU", None, threads)
    before = peak_memory()
    model = core().read_model(xml)
    model.reshape({"latent_sample": list(shape)})
    network = core().compile_model(model, device.name, device.options)
    latents = np.random.default_rng(0).standard_normal(shape, np.float32)
    seconds = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        network({"latent_sample": latents})
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:]), peak_memory() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tiny", type=Path, help="folder of an AutoencoderTiny")
    parser.add_argument("--side", type=int, default=512, help="of the picture, in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="in each process, after the first")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    fresh = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as work:
        try:
            graphs, channels, factor = exported(options.checkpoint, options.tiny, Path(work))
        except SfumatoError as error:
            parser.error(str(error))
        shape = (1, channels, options.side // factor, options.side // factor)
        seen: dict[str, list[tuple[float, int]]] = {name: [] for name in graphs}
        for _ in range(options.rounds):
            for name, xml in graphs.items():
                with fresh.Pool(1) as pool:
                    seen[name].append(pool.apply(timed, (xml, shape, options.runs, options.threads)))
        weights = {name: xml.with_suffix(".bin").stat().st_size for name, xml in graphs.items()}
    medians = {}
    print(f"{'decoder':<10}{'weights':>12}{'seconds':>12}{'peak':>12}")
    for name, each in seen.items():
        medians[name] = statistics.median(seconds for seconds, _ in each)
        peak = max(memory for _, memory in each)
        print(f"{name:<10}{weights[name] / 1e6:>9.1f} MB{medians[name]:>12.3f}{peak / 1e6:>9.0f} MB")
    print(f"times as fast: {medians['own'] / medians['tiny']:.1f}")


if __name__ == "__main__":
    main()
