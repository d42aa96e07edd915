"""Pipelines in little memory: one network at a time, none afterwards, and the same pictures."""

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato import Pipeline
from sfumato.errors import Cancelled, InvalidRequest, SfumatoError
from sfumato.runtime import vae
from sfumato.runtime.networks import Network

PROMPT = "noto red apple"


class Spy:
    """Which networks are loaded, in which order they were, and how many there were at most."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.now: set[Path] = set()
        self.most = 0

    def loaded(self, path: Path) -> None:
        if path not in self.now:
            self.order.append(path.parent.name)
        self.now.add(path)
        self.most = max(self.most, len(self.now))


@pytest.fixture
def spy(monkeypatch) -> Spy:
    spy, load, release = Spy(), Network.load, Network.release

    def watched_load(self, *shapes):
        load(self, *shapes)
        spy.loaded(self.path)

    def watched_release(self):
        release(self)
        spy.now.discard(self.path)

    monkeypatch.setattr(Network, "load", watched_load)
    monkeypatch.setattr(Network, "release", watched_release)
    return spy


@pytest.fixture
def low(artifacts) -> Pipeline:
    return Pipeline.load(artifacts("sd"), memory="low")


@pytest.mark.parametrize(("name", "guidance"), [("sd", 1.0), ("sd", 4.0), ("sdxl", 4.0), ("sd3", 4.0)])
def test_low_and_high_give_the_same_bytes(artifacts, name, guidance):
    pipes = [Pipeline.load(artifacts(name), memory=memory) for memory in ("low", "high")]
    settings = {"seed": 7, "steps": 2, "count": 2, "guidance": guidance, "negative_prompt": "a house"}
    low, high = ([image.tobytes() for image in pipe(PROMPT, **settings).images] for pipe in pipes)
    assert low == high


def test_low_holds_one_network_at_a_time(artifacts, spy):
    pipe = Pipeline.load(artifacts("sd3"), memory="low")
    pipe(PROMPT, steps=2, count=2)
    encoders = ["text_encoder", "text_encoder_2", "text_encoder_3"]
    assert spy.order == [*encoders, "transformer", "vae_decoder"]
    assert (spy.most, spy.now) == (1, set())
    pipe(PROMPT, steps=1)
    assert (len(spy.order), spy.most, spy.now) == (7, 1, set())


def test_high_keeps_all_until_they_are_released(artifacts, spy):
    pipe = Pipeline.load(artifacts("sd"), memory="high")
    for _ in range(2):
        pipe(PROMPT, steps=1)
    assert spy.order == ["text_encoder", "unet", "vae_decoder"]
    assert len(spy.now) == 3
    pipe.release()
    assert spy.now == set()
    assert len(pipe(PROMPT, steps=1).images) == 1


def test_latents_need_no_decoder(low, spy):
    low(PROMPT, steps=1, output_type="latent")
    assert spy.order == ["text_encoder", "unet"]


def generate(pipe: Pipeline, events: list[str], cancel=None):
    request = pipe(PROMPT, steps=1, count=2, seed=7, output_type="latent").request
    return pipe.generate(
        request,
        on_step=lambda step: events.append(f"step of {step.image}"),
        on_image=lambda index, image, _: events.append(f"picture {index}"),
        cancel=cancel,
    )


def test_pictures_of_a_batch_are_decoded_after_all_are_denoised_and_told_one_by_one(low):
    events: list[str] = []
    generate(low, events)
    assert events == ["step of 0", "step of 1", "picture 0", "picture 1"]


def test_cancelled_anywhere_nothing_stays_loaded(low, spy):
    expected = [image.tobytes() for image in generate(low, []).images]
    for stop in count():
        asked = count()
        events: list[str] = []
        try:
            result = generate(low, events, lambda asked=asked, stop=stop: next(asked) == stop)
        except Cancelled:
            assert spy.now == set()
        else:
            break
    assert stop >= 6, "before each of three networks, after each of two steps, and before a picture"
    assert spy.most == 1
    assert [image.tobytes() for image in result.images] == expected


@pytest.mark.parametrize("stage", ["on_step", "on_image"])
@pytest.mark.parametrize("failure", [SfumatoError("failed"), KeyboardInterrupt()])
def test_failed_anywhere_nothing_stays_loaded(low, spy, stage, failure):
    def fail(*_):
        raise failure

    request = low(PROMPT, steps=1, output_type="latent").request
    with pytest.raises(type(failure)):
        low.generate(request, **{stage: fail})
    assert spy.now == set()


def test_times_of_stages(low):
    seconds = low(PROMPT, steps=1, count=2).seconds
    assert list(seconds) == ["load", "encode", "denoise", "decode", "total"]
    assert seconds["load"] > 0
    assert sum(seconds.values()) <= 2 * seconds["total"]


def test_what_was_chosen_is_recorded(artifacts, monkeypatch):
    choices = {"low": "low", "high": "high", "auto": "low"}
    monkeypatch.setattr("sfumato.runtime.pipeline.available", lambda: 0)
    for memory, kept in choices.items():
        assert Pipeline.load(artifacts("sd"), memory=memory).memory == kept
    monkeypatch.setattr("sfumato.runtime.pipeline.available", lambda: 10**12)
    assert Pipeline.load(artifacts("sd")).memory == "high"


def test_unknown_choice(artifacts):
    with pytest.raises(InvalidRequest, match="memory 'lots': one of auto, low, high"):
        Pipeline.load(artifacts("sd"), memory="lots")


def test_large_pictures_are_decoded_in_tiles_of_one_shape(artifacts, monkeypatch):
    """Random convolutions reach a few latents far and group normalisation everywhere: close, not equal."""
    whole = Pipeline.load(artifacts("sd"), memory="low")
    monkeypatch.setitem(vae.TILE, "low", 8)
    tiled = Pipeline.load(artifacts("sd"), memory="low")
    shapes = []
    load = Network.load
    monkeypatch.setattr(
        Network,
        "load",
        lambda self, inputs, outputs: (shapes.append(dict(inputs)), load(self, inputs, outputs)),
    )
    settings = {"seed": 7, "steps": 2, "size": (120, 72), "output_type": "np"}
    picture = tiled(PROMPT, **settings).images
    decoded = {tuple(each["latent_sample"]) for each in shapes if "latent_sample" in each}
    assert decoded == {(1, 4, 8, 8)}
    assert picture.shape == (1, 72, 120, 3)
    expected = whole(PROMPT, **settings).images
    assert np.abs(picture - expected).mean() < 0.05
    small = {"seed": 7, "steps": 1, "size": (64, 64)}
    assert tiled(PROMPT, **small).images[0].tobytes() == whole(PROMPT, **small).images[0].tobytes()


def test_low_keeps_no_compiled_networks_on_the_disk(artifacts, tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    Pipeline.load(artifacts("sd"), memory="low")(PROMPT, steps=1)
    assert not (tmp_path / "cache").exists()
    Pipeline.load(artifacts("sd"), memory="high")(PROMPT, steps=1)
    assert list((tmp_path / "cache").glob("*.blob"))


def test_two_stages_hold_one_network_at_a_time(artifacts, spy):
    pipe, refiner = (Pipeline.load(artifacts(name), memory="low") for name in ("sdxl", "refiner"))
    pipe(PROMPT, refiner=refiner, steps=5, count=2)
    assert (spy.most, spy.now) == (1, set())


def test_a_picture_is_encoded_before_the_rest_is_loaded(artifacts, spy):
    pipe = Pipeline.load(artifacts("sd"), memory="low")
    pipe(PROMPT, image=Image.new("RGB", (64, 64)), strength=0.5, steps=4)
    assert spy.order == ["vae_encoder", "text_encoder", "unet", "vae_decoder"]
    assert (spy.most, spy.now) == (1, set())
