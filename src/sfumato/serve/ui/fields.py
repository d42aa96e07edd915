"""The fields that say how a picture is made, and what they stand for in a request."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import gradio as gr

from ...artifact import Artifact
from ...errors import InvalidRequest
from ...graphs.token_merging import LARGEST_RATIO
from ...manifest import MOST_GUIDANCE_EVERY, Manifest, Reuse
from ...runtime import values
from ...runtime.parameters import Parameters, merging, settings
from ...runtime.samplers import SAMPLERS
from .studio import QUIET

OWN = "the model's"
SHAPES = {
    "square": (1, 1),
    "portrait 2:3": (2, 3),
    "landscape 3:2": (3, 2),
    "wide 16:9": (16, 9),
    "tall 9:16": (9, 16),
}
MOST_AT_ONCE = 16
MOST_PROMPT = 10_000
MOST_SEED = 2**53 - 1
"""Browsers round larger numbers."""
NAMED = "(width, height) => `${width}x${height}`"
Values = Mapping[Any, Any]
Updates = dict[Any, Any]


@dataclass(frozen=True)
class Fields:
    """Components of one form, and the way from them to a request and back."""

    size: gr.Dropdown
    width: gr.Number
    height: gr.Number
    steps: gr.Slider
    guidance: gr.Slider
    sampler: gr.Dropdown
    spacing: gr.Dropdown
    seed: gr.Number
    locked: gr.Checkbox
    count: gr.Slider
    merging: gr.Slider
    reuse: gr.Radio
    guidance_every: gr.Slider
    clip_skip: gr.Slider
    skip_layers: gr.Textbox

    def all(self) -> set[Any]:
        return set(vars(self).values())

    def given(self, values: Values) -> dict[str, Any]:
        """What they say, for `build_request`. Raises InvalidRequest for what says nothing."""
        spacing, sampler = values[self.spacing], values[self.sampler]
        return {
            "size": (whole("width", values[self.width]), whole("height", values[self.height])),
            "steps": whole("steps", values[self.steps]),
            "guidance": values[self.guidance],
            "sampler": None if sampler == OWN else sampler,
            "spacing": None if spacing == OWN else spacing,
            "seed": _seed(values[self.seed]) if values[self.locked] else None,
            "count": whole("count", values[self.count]),
            "reuse": values[self.reuse],
            "guidance_every": whole("steps of a negative prompt", values[self.guidance_every]),
            "clip_skip": whole("clip skip", values[self.clip_skip]),
            "skip_layers": _layers(values[self.skip_layers]) or None,
        }

    def of_model(self, artifact: Artifact) -> Updates:
        """The model's own settings."""
        manifest = artifact.manifest
        width, height = manifest.latents.default_size
        sampling = manifest.sampling
        merges = manifest.token_merging is not None
        return {
            self.size: gr.update(choices=list(sizes(manifest)), value=next(iter(sizes(manifest)))),
            self.width: gr.update(value=width, step=manifest.latents.size_multiple),
            self.height: gr.update(value=height, step=manifest.latents.size_multiple),
            self.steps: sampling.steps,
            self.guidance: sampling.guidance,
            self.sampler: gr.update(choices=[OWN, *samplers(manifest)], value=OWN),
            self.spacing: OWN,
            self.merging: gr.update(value=0, interactive=not merges),
            self.reuse: sampling.reuse,
            self.guidance_every: sampling.guidance_every,
            self.clip_skip: 0,
            self.skip_layers: "",
        }

    def of_parameters(self, carried: Parameters) -> Updates:
        """What a picture says of how it was made; of what it does not say, the number stays."""
        found = settings(carried)
        plain = {"steps": self.steps, "guidance": self.guidance, "seed": self.seed}
        updates: Updates = {each: found[name] for name, each in plain.items() if name in found}
        if "size" in found:
            width, height = found["size"]
            updates |= {self.size: f"{width}x{height}", self.width: width, self.height: height}
        return updates | {
            self.sampler: found.get("sampler", OWN),
            self.spacing: found.get("spacing", OWN),
            self.merging: merging(carried).get("token_merging", 0),
            self.reuse: found.get("reuse", "off"),
            self.guidance_every: found.get("guidance_every", 1),
            self.clip_skip: found.get("clip_skip", 0),
            self.skip_layers: ", ".join(map(str, found.get("skip_layers", ()))),
            self.locked: "seed" in found,
            self.count: 1,
        }


def fields() -> Fields:
    """Put the fields into the block that is open."""
    size = gr.Dropdown(label="Size", choices=[], allow_custom_value=True, elem_id="size")
    with gr.Row():
        width = gr.Number(label="Width", precision=0, min_width=80)
        height = gr.Number(label="Height", precision=0, min_width=80)
    with gr.Row():
        steps = gr.Slider(1, 150, 20, step=1, label="Steps", elem_id="steps")
        guidance = gr.Slider(0, 30, 4, step=0.1, label="Guidance")
    with gr.Row(elem_classes="seed"):
        seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
        locked = gr.Checkbox(False, label="Keep the seed", elem_id="locked")
        count = gr.Slider(1, MOST_AT_ONCE, 1, step=1, label="Pictures", elem_id="count")
    with gr.Accordion("More settings", open=False):
        with gr.Row():
            sampler = gr.Dropdown([OWN], value=OWN, label="Sampler")
            spacing = gr.Dropdown(
                [OWN, "karras", "exponential", "beta", "ays"], value=OWN, label="Noise levels"
            )
        with gr.Row():
            merging = gr.Slider(
                0,
                LARGEST_RATIO,
                0,
                step=0.05,
                label="Token merging",
                info="faster, with less detail",
                elem_id="merging",
            )
            clip_skip = gr.Slider(0, 11, 0, step=1, label="CLIP layers to skip")
        reuse = gr.Radio(
            list(get_args(Reuse)),
            value="off",
            label="Reuse between steps",
            info="faster, much the same picture",
            elem_id="reuse",
        )
        guidance_every = gr.Slider(
            1,
            MOST_GUIDANCE_EVERY,
            1,
            step=1,
            label="Negative prompt at one step in",
            info="faster; with reuse from 2 on at its key steps",
            elem_id="guidance-every",
        )
        skip_layers = gr.Textbox(label="Skip-layer guidance", placeholder="7, 8, 9 for SD3.5", max_lines=1)
    size.input(_sides, size, [width, height], **QUIET)
    gr.on([width.input, height.input], None, [width, height], size, js=NAMED, **QUIET)
    return Fields(
        size, width, height, steps, guidance, sampler, spacing, seed, locked, count, merging, reuse,
        guidance_every, clip_skip, skip_layers,
    )  # fmt: skip


def sizes(manifest: Manifest) -> dict[str, tuple[int, int]]:
    """Sizes of about the model's own area, by their names: `square, 512x512`."""
    space = manifest.latents
    own_width, own_height = space.default_size
    found = {f"the model's, {own_width}x{own_height}": (own_width, own_height)}
    for name, (across, down) in SHAPES.items():
        scale = math.sqrt(own_width * own_height / (across * down))
        multiple = space.size_multiple
        width, height = (max(1, round(part * scale / multiple)) * multiple for part in (across, down))
        if (width, height) not in found.values() and width * height <= values.most_pixels(space):
            found[f"{name}, {width}x{height}"] = (width, height)
    return found


def samplers(manifest: Manifest) -> list[str]:
    """Names of the samplers that work in the model's space."""
    space = "flow" if manifest.sampling.prediction == "flow" else "vp"
    return [name for name, sampler in SAMPLERS.items() if sampler.space == space]


def prompt_of(text: object) -> str:
    """A prompt of a length that anybody means. Raises InvalidRequest."""
    text = values.text("prompt", text or "")
    if len(text) > MOST_PROMPT:
        raise InvalidRequest(f"prompt of {len(text)} characters: at most {MOST_PROMPT} are read; shorten it")
    return text


def _sides(size: str) -> tuple[Any, Any]:
    """Width and height of a size's name; both stay where it names none."""
    sides = str(size).rsplit(" ", 1)[-1].split("x")
    if len(sides) == 2 and all(side.isascii() and side.isdigit() and len(side) < 5 for side in sides):
        return int(sides[0]), int(sides[1])
    return gr.skip(), gr.skip()


def merged(first: Updates, second: Updates) -> Updates:
    """All updates; of a component that both update, with the value of the second one."""
    both = {
        each: gr.update(
            **{key: item for key, item in first[each].items() if key != "__type__"} | {"value": value}
        )
        for each, value in second.items()
        if isinstance(first.get(each), dict)
    }
    return first | second | both


def whole(name: str, value: object) -> int:
    """A whole number of a field. Raises InvalidRequest, also for a field that is empty."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or value % 1:
        raise InvalidRequest(f"{name}: give a whole number")
    return int(value)


def _seed(value: object) -> int:
    seed = whole("seed", value)
    if seed > MOST_SEED:
        raise InvalidRequest(
            f"seed {seed}: the page takes {MOST_SEED} at most; larger ones: `sfumato generate`"
        )
    return seed


def _layers(text: object) -> tuple[int, ...]:
    parts = str(text or "").replace(",", " ").split()
    if not all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts):
        raise InvalidRequest(
            f"skipped layers {str(text)[:50]!r}: write numbers with commas between, as 7, 8, 9"
        )
    return tuple(map(int, parts))
