"""Shows where a picture is going: previews after some steps, eight times as large as they come."""

from PIL import Image

from sfumato import Pipeline
from sfumato.runtime.progress import Step

SHOWN = (0, 3, 6, 9, 19)


def show(step: Step) -> None:
    preview = step.preview() if step.index in SHOWN else None
    if preview is not None:
        preview.resize((128, 128), Image.Resampling.NEAREST).save(f"{SHOWN.index(step.index)}.png")


Pipeline.load("mini")("noto grinning face", seed=5, on_step=show)
