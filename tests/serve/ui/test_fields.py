"""The fields: what they ask for, and how a picture's settings come back into them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from sfumato.artifact import Artifact, find_model, load_artifact
from sfumato.errors import InvalidRequest
from sfumato.graphs.token_merging import TokenMerging
from sfumato.manifest import Manifest
from sfumato.runtime.build import build_request
from sfumato.runtime.parameters import Models, described, parse_parameters
from sfumato.serve.ui.fields import (
    MOST_SEED,
    OWN,
    Fields,
    Updates,
    fields,
    merged,
    prompt_of,
    samplers,
    sizes,
    whole,
)

FAMILIES = ("mini", "sd", "sdxl", "sd35")
Load = Callable[[str], Manifest]


@pytest.fixture
def form() -> Fields:
    with gr.Blocks(analytics_enabled=False):
        return fields()


@pytest.fixture
def manifest(artifacts: Callable[[str], Path]) -> Load:
    return lambda name: load_artifact(find_model("mini") if name == "mini" else artifacts(name)).manifest


def filled(form: Fields, updates: Updates) -> dict[Any, Any]:
    """The form's values after updates."""
    values = {each: each.value for each in form.all()}
    for each, update in updates.items():
        if not isinstance(update, dict):
            values[each] = update
        elif "value" in update:
            values[each] = update["value"]
    return values


def of_model(form: Fields, name: str, artifacts: Callable[[str], Path]) -> dict[Any, Any]:
    artifact = load_artifact(find_model("mini") if name == "mini" else artifacts(name))
    return filled(form, form.of_model(artifact))


@pytest.mark.parametrize("name", FAMILIES)
def test_untouched_fields_ask_for_the_models_own(
    form: Fields, name: str, artifacts: Callable[[str], Path], manifest: Load
) -> None:
    values = of_model(form, name, artifacts) | {form.seed: 7, form.locked: True}
    asked = build_request(manifest(name), "red apple", form.given(values))
    assert asked == build_request(manifest(name), "red apple", {"seed": 7})


@pytest.mark.parametrize("name", FAMILIES)
def test_settings_of_a_picture_come_back(
    form: Fields, name: str, artifacts: Callable[[str], Path], manifest: Load
) -> None:
    own = of_model(form, name, artifacts)
    flow = manifest(name).sampling.prediction == "flow"
    changed = {
        form.width: manifest(name).latents.size_multiple * 2,
        form.steps: 9,
        form.guidance: 2.5,
        form.sampler: samplers(manifest(name))[1],
        form.spacing: "karras",
        form.seed: 123,
        form.locked: True,
        form.reuse: "fast",
        form.guidance_every: 3,
        form.clip_skip: 1,
        form.skip_layers: "0, 1" if flow else "",
    }
    request = build_request(manifest(name), "red apple", form.given(own | changed))
    carried = parse_parameters(described(request, 0, Models("model", merging=TokenMerging(0.3))))
    again = filled(form, form.of_parameters(carried))
    assert again[form.merging] == 0.3
    assert build_request(manifest(name), "red apple", form.given(again)) == request
    assert again[form.size] == f"{changed[form.width]}x{own[form.height]}"


def test_reuse_begins_as_the_model_has_it(form: Fields, manifest: Load) -> None:
    own = manifest("sd")
    changed = {"reuse": "fast", "guidance_every": 2}
    reusing = own.model_copy(update={"sampling": own.sampling.model_copy(update=changed)})
    for each, reuse, every in ((own, "off", 1), (reusing, "fast", 2)):
        begun = form.of_model(Artifact(Path(), each))
        assert (begun[form.reuse], begun[form.guidance_every]) == (reuse, every)


def test_what_a_picture_does_not_say_is_not_kept(form: Fields) -> None:
    back = form.of_parameters(parse_parameters("red apple\nSteps: 3, CFG scale: 2, Size: 64x64"))
    assert {back[each] for each in (form.sampler, form.spacing)} == {OWN}
    assert (back[form.clip_skip], back[form.skip_layers], back[form.locked]) == (0, "", False)
    assert form.guidance in back
    assert form.seed not in back


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_are_ones_that_the_model_can_draw(name: str, manifest: Load) -> None:
    offered = sizes(manifest(name))
    assert next(iter(offered.values())) == manifest(name).latents.default_size
    assert len(set(offered.values())) == len(offered)
    for label, size in offered.items():
        assert label.endswith(f"{size[0]}x{size[1]}")
        assert build_request(manifest(name), "", {"size": size}).size == size


@pytest.mark.parametrize("name", FAMILIES)
def test_samplers_are_ones_that_the_model_can_use(name: str, manifest: Load) -> None:
    assert manifest(name).sampling.sampler in samplers(manifest(name))
    for sampler in samplers(manifest(name)):
        build_request(manifest(name), "", {"sampler": sampler})


def test_a_seed_counts_only_where_it_is_kept(form: Fields) -> None:
    values = filled(form, {form.width: 128, form.height: 128, form.seed: 7})
    assert form.given(values)["seed"] is None
    with pytest.raises(InvalidRequest, match="sfumato generate"):
        form.given(values | {form.seed: MOST_SEED + 1, form.locked: True})


@pytest.mark.parametrize("value", [None, "7", True, 1.5, float("nan"), float("inf"), [7]])
def test_what_is_no_whole_number(value: object) -> None:
    with pytest.raises(InvalidRequest, match="steps: give a whole number"):
        whole("steps", value)


@pytest.mark.parametrize("text", ["x" * 10_001, "\ud800", ["a"]])
def test_what_is_no_prompt(text: object) -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        prompt_of(text)
    assert prompt_of(None) == ""


def test_updates_of_one_field_become_one() -> None:
    both = merged({"a": gr.update(choices=[1], value=1), "b": 2}, {"a": 3, "c": 4})
    assert both == {"a": gr.update(choices=[1], value=3), "b": 2, "c": 4}
