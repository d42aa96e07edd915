"""What may be asked of a model, and what is made of it."""

import numpy as np
import pytest
from PIL import Image

from sfumato.errors import InvalidRequest
from sfumato.manifest import Manifest
from sfumato.runtime.build import build_request


def manifest(side: int, **more: object) -> Manifest:
    return Manifest(
        name="toy",
        family="sd",
        precision="fp16",
        components={"vae_encoder": {"kind": "vae_encoder"}},
        latents={
            "channels": 4,
            "factor": 8,
            "scale": 1,
            "size_multiple": 8,
            "default_size": (side, side),
        },
        sampling={
            "sampler": "euler",
            "prediction": "epsilon",
            "steps": 4,
            "guidance": 5,
            "scheduler": {},
        },
        files={},
        **more,
    )


@pytest.mark.parametrize(("own", "largest"), [(64, (1024, 1024)), (512, (2048, 512)), (1024, (2048, 2048))])
def test_largest_picture(own, largest):
    model = manifest(own)
    assert build_request(model, "a cat", {"size": largest}).size == largest
    width, height = largest
    with pytest.raises(InvalidRequest, match=rf"made for {own}x{own} takes {width * height} at most"):
        build_request(model, "a cat", {"size": (width + 8, height)})


PICTURE = Image.new("RGB", (100, 60), "red")


def request(**given):
    return build_request(manifest(64), "a cat", given)


def test_a_picture_decides_the_size():
    made = request(image=PICTURE)
    assert made.size == made.image.size == (104, 64)
    assert (made.strength, made.mask) == (0.6, None)
    assert request(image=PICTURE, size=(64, 64)).image.size == (64, 64)


def test_a_mask_is_brought_to_the_size_and_repaints_all_the_way():
    mask = np.zeros((30, 50), np.uint8)
    mask[10:20] = 255
    made = request(image=PICTURE, mask=mask)
    assert made.mask.size == made.size == (104, 64)
    assert made.strength == 1.0
    assert request(image=PICTURE, mask_image=mask, strength=0.5).strength == 0.5


def test_a_large_picture_is_brought_to_the_models_own_area():
    assert request(image=Image.new("RGB", (128, 128))).size == (128, 128)
    assert request(image=Image.new("RGB", (136, 128))).size == (64, 64)
    assert request(image=Image.new("RGB", (400, 100))).size == (128, 32)


def test_outpainting_makes_canvas_and_mask():
    made = request(image=PICTURE, outpaint=(20, 0, 0, 0))
    assert made.size == (120, 56)
    assert made.mask.getpixel((5, 30)) == 255
    assert made.mask.getpixel((80, 30)) == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"strength": 0.5}, "strength: there is no image"),
        ({"mask": PICTURE}, "mask: there is no image"),
        ({"outpaint": (8, 8, 8, 8)}, "outpaint: there is no image"),
        ({"image": PICTURE, "strength": 1.1}, "strength 1.1: must be a finite number from 0 to 1"),
        ({"image": PICTURE, "strength": float("nan")}, "strength nan"),
        ({"image": PICTURE, "mask": Image.new("L", (50, 30))}, "nothing to repaint"),
        ({"image": PICTURE, "mask": PICTURE, "outpaint": (8, 8, 8, 8)}, "mask and outpaint: give one"),
        ({"image": PICTURE, "outpaint": (8, 8)}, "must be four numbers"),
        ({"image": "nowhere.png"}, "nowhere.png: no such file"),
        ({"image": PICTURE, "mask": Image.new("L", (8, 8), 255)}, "of 100x60 has another shape"),
        ({"image": PICTURE, "outpaint": (8, 8, 8, 8), "size": (64, 64)}, "size and outpaint"),
        ({"guidance_interval": (2, 1)}, "must be two noise levels from 0, rising"),
        ({"guidance_interval": (1, 2, 3)}, "must be two sigmas"),
        ({"skip_layers": (1,), "skip_layers_start": 0.5}, "must be fractions of the steps, rising"),
        ({"prompt_2": "two"}, "prompt_2: toy has no text_encoder_2; leave it out"),
        ({"negative_prompt_3": "three"}, "toy has no text_encoder_3"),
        ({"refiner": "x"}, "refiner: cannot be given here"),
        ({"guidance_interval": 3}, "must be a list of numbers"),
        ({"guidance_rescale": 2}, "guidance_rescale 2"),
        ({"skip_layers": (1, -1)}, "skip_layers -1"),
        ({"clip_skip": -1}, "clip_skip -1"),
        ({"switch_at": 1.5}, "switch_at 1.5"),
        ({"eta": 7}, "eta 7"),
        ({"prompt_2": 3}, "prompt_2 3: must be one text"),
        ({"strenght": 0.5}, "did you mean 'strength'"),
    ],
)
def test_what_cannot_be_done_is_refused(given, says):
    with pytest.raises(InvalidRequest, match=says):
        request(**given)


def test_a_model_without_an_encoder_takes_no_picture():
    model = manifest(64).model_copy(update={"components": {}})
    with pytest.raises(InvalidRequest, match="toy has no VAE encoder; convert its checkpoint again"):
        build_request(model, "a cat", {"image": PICTURE})


def test_encoders_read_their_own_prompts():
    kinds = {"text_encoder": "clip", "text_encoder_2": "clip_projection", "text_encoder_3": "t5"}
    components = {name: {"kind": kind} for name, kind in kinds.items()}
    model = Manifest.model_validate(manifest(64).model_dump() | {"components": components})
    texts = {"prompt_2": "two", "negative_prompt": "no", "negative_prompt_3": "not three"}
    made = build_request(model, "a cat", texts)
    assert made.prompts == [
        {"text_encoder": "a cat", "text_encoder_2": "two", "text_encoder_3": "a cat"},
        {"text_encoder": "no", "text_encoder_2": "no", "text_encoder_3": "not three"},
    ]
    assert request(guidance=1).prompts == [dict.fromkeys(made.prompts[0], "a cat")]
