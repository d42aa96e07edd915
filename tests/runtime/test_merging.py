"""Tokens that merge as a model is loaded."""

import json
import shutil

import pytest

from sfumato import Pipeline
from sfumato.artifact import MANIFEST, load_artifact
from sfumato.errors import InvalidRequest
from sfumato.runtime.batch import Batch
from sfumato.runtime.merging import merging_of
from sfumato.runtime.parameters import merging, parse_parameters

PROMPT = "noto red apple"


def picture(model, **options) -> bytes:
    return Pipeline.load(model, **options)(PROMPT, seed=3, steps=2).images[0].tobytes()


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_the_same_as_a_model_that_was_converted_so(artifacts, checkpoints, tmp_path, family):
    from sfumato import convert

    convert(checkpoints(family), tmp_path / "merging", precision="fp32", token_merging=0.5)
    merged = picture(artifacts(family), token_merging=0.5)
    assert merged == picture(tmp_path / "merging")
    assert merged != picture(artifacts(family))


def test_a_ratio_of_nothing_is_the_model_as_it_is(artifacts):
    assert picture(artifacts("sd"), token_merging=0.0) == picture(artifacts("sd"))


def test_methods_differ(artifacts):
    pooled = picture(artifacts("sd"), token_merging=0.5, merging_method="pool")
    assert pooled != picture(artifacts("sd"), token_merging=0.5)


@pytest.mark.parametrize(
    "options", [{}, {"token_merging": 0.4}, {"token_merging": 0.25, "merging_method": "pool"}]
)
def test_a_picture_says_how_tokens_merged(artifacts, options):
    text = Pipeline.load(artifacts("sd"), **options)(PROMPT, seed=3, steps=2).parameters()
    assert merging(parse_parameters(text)) == ({"merging_method": "match"} | options if options else {})
    assert ("Token merging" in text) == bool(options)


def test_skipped_layers_merge_too(artifacts):
    options = {"seed": 3, "steps": 4, "skip_layers": (0,), "skip_layers_stop": 1.0, "guidance": 4.0}
    made = [
        Pipeline.load(artifacts("sd3"), token_merging=ratio)(PROMPT, **options).images[0].tobytes()
        for ratio in (None, 0.5)
    ]
    assert made[0] != made[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_merging": 1.0}, "token merging 1.0"),
        ({"token_merging": -0.1}, "token merging -0.1"),
        ({"token_merging": float("nan")}, "token merging nan"),
        ({"token_merging": 0.5, "merging_method": "drop"}, "must be match or pool"),
    ],
)
def test_what_makes_no_sense(artifacts, options, message):
    with pytest.raises(InvalidRequest, match=message):
        Pipeline.load(artifacts("sd"), **options)


def test_a_model_that_merges_already(artifacts, tmp_path):
    shutil.copytree(artifacts("sd"), tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / MANIFEST).read_text())
    manifest["token_merging"] = {"ratio": 0.5, "method": "match"}
    (tmp_path / "model" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InvalidRequest, match="merges tokens already"):
        merging_of(load_artifact(tmp_path / "model"), 0.5)
    assert merging_of(load_artifact(tmp_path / "model"), None) is None
    assert merging_of(load_artifact(tmp_path / "model"), 0.0) is None


def test_a_batch_tells_merged_pictures_from_others(artifacts, tmp_path):
    def title(prompt: str) -> str:
        return prompt

    plain, merged = (
        Batch(Pipeline.load(artifacts("sd"), token_merging=ratio), tmp_path, title)._model
        for ratio in (None, 0.5)
    )
    assert plain != merged
