"""PNG files that carry how they were made, in the `parameters` text that other tools read."""

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..files import atomic_file


def parameters_text(
    prompt: str,
    negative_prompt: str | None,
    *,
    steps: int,
    sampler: str,
    guidance: float,
    seed: int,
    size: tuple[int, int],
    model: str,
    version: str,
) -> str:
    """The prompt, the negative prompt and one line of settings, as AUTOMATIC1111's web UI writes them.

    size: width and height in pixels.
    """
    settings = {
        "Steps": steps,
        "Sampler": sampler,
        "CFG scale": f"{guidance:g}",
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": _quoted(model),
        "Version": f"sfumato {version}",
    }
    lines = [prompt]
    if negative_prompt:
        lines.append(f"Negative prompt: {negative_prompt}")
    lines.append(", ".join(f"{key}: {value}" for key, value in settings.items()))
    return "\n".join(lines)


def save_png(image: Image.Image, path: Path, parameters: str | None = None) -> None:
    """Write a PNG whole or not at all, with `parameters` as its text block unless None.

    Raises InvalidRequest where `path` cannot be written and SfumatoError where the disk is full.
    """
    info = PngInfo()
    if parameters is not None:
        info.add_text("parameters", parameters)
    with atomic_file(path) as partial:
        image.save(partial, format="PNG", pnginfo=info)


def _quoted(value: str) -> str:
    """Values with separators in them are quoted, so that the line can be taken apart again."""
    if not any(character in value for character in ",:\n"):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
