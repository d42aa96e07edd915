"""One way, gone by one model or by two."""

import numpy as np
import pytest

from sfumato import Pipeline
from sfumato.artifact import load_artifact
from sfumato.errors import InvalidRequest
from sfumato.runtime.build import build_request
from sfumato.runtime.stages import plan

SETTINGS = {"seed": 5, "steps": 6, "size": (64, 64), "output_type": "latent"}
MEMORYLESS = ["euler", "euler-ancestral", "ddim", "lcm"]


@pytest.fixture(scope="module")
def sdxl(artifacts):
    return Pipeline.load(artifacts("sdxl"), precision="f32", memory="high")


@pytest.mark.parametrize("sampler", MEMORYLESS)
@pytest.mark.parametrize("switch_at", [0, 0.5, 1])
def test_a_model_that_is_its_own_refiner_makes_the_same_picture(sdxl, sampler, switch_at):
    """Noise, schedule and latents go on at the switch as if there were none."""
    alone = sdxl("a red apple", sampler=sampler, **SETTINGS).images
    refined = sdxl("a red apple", sampler=sampler, refiner=sdxl, switch_at=switch_at, **SETTINGS).images
    np.testing.assert_array_equal(alone, refined)


@pytest.mark.parametrize("sampler", ["pndm", "dpmpp-2m", "unipc"])
def test_samplers_with_a_memory_begin_anew_at_the_switch(sdxl, sampler):
    alone = sdxl("a red apple", sampler=sampler, **SETTINGS).images
    refined = sdxl("a red apple", sampler=sampler, refiner=sdxl, switch_at=0.5, **SETTINGS).images
    error = np.linalg.norm(alone - refined) / np.linalg.norm(alone)
    assert 0 < error < 0.1


def test_the_steps_are_shared_at_the_switch(artifacts):
    manifest = load_artifact(artifacts("sdxl")).manifest
    refiner = load_artifact(artifacts("refiner")).manifest

    def calls(**given):
        request = build_request(manifest, "a cat", {"steps": 10, **given})
        return [stage.calls for stage in plan(request, [manifest, refiner])]

    assert calls() == [8, 2]
    assert calls(switch_at=0.5) == [5, 5]
    assert calls(switch_at=0) == [0, 10]
    assert calls(switch_at=1) == [10, 0]
    picture = np.zeros((64, 64, 3), np.uint8)
    assert calls(image=picture, strength=0.5) == [3, 2]
    assert calls(image=picture, strength=0.1) == [0, 1]


def test_a_switch_without_a_refiner_is_refused(sdxl):
    with pytest.raises(InvalidRequest, match=r"switch_at 0\.5: there is no refiner to switch to"):
        sdxl("a cat", switch_at=0.5)


@pytest.mark.parametrize(
    ("interval", "refused"), [((20.0, 30.0), True), ((0.0, 0.01), True), ((1.0, 5.0), False)]
)
def test_an_interval_without_a_step_is_refused(artifacts, interval, refused):
    manifest = load_artifact(artifacts("sdxl")).manifest
    request = build_request(manifest, "a cat", {"steps": 10, "guidance": 5.0, "guidance_interval": interval})
    if not refused:
        assert plan(request, [manifest])
        return
    with pytest.raises(InvalidRequest, match=r"none of the 10 steps is in it; their sigmas go from \d"):
        plan(request, [manifest])


def test_an_interval_of_steps_that_are_skipped_is_refused(artifacts):
    manifest = load_artifact(artifacts("sdxl")).manifest
    given = {"steps": 10, "guidance": 5.0, "guidance_interval": (5.0, 20.0)}
    begun = given | {"image": np.zeros((64, 64, 3), np.uint8), "strength": 0.3}
    assert plan(build_request(manifest, "a cat", given), [manifest])
    with pytest.raises(InvalidRequest, match="none of the 3 steps is in it"):
        plan(build_request(manifest, "a cat", begun), [manifest])


def test_an_interval_of_no_guidance_does_not_matter(artifacts):
    manifest = load_artifact(artifacts("sdxl")).manifest
    given = {"steps": 10, "guidance": 1.0, "guidance_interval": (20.0, 30.0)}
    assert plan(build_request(manifest, "a cat", given), [manifest])
