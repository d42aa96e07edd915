"""What a caller of a pipeline relies on."""

import gc
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from sfumato import Pipeline
from sfumato.errors import ArtifactError, Cancelled, InvalidRequest, SfumatoError
from sfumato.runtime.noise import randn

PROMPT = "noto red apple"


@pytest.fixture(scope="module")
def sd(artifacts) -> Pipeline:
    return Pipeline.load(artifacts("sd"))


@pytest.fixture(scope="module")
def sd3(artifacts) -> Pipeline:
    return Pipeline.load(artifacts("sd3"))


def bytes_of(result) -> list[bytes]:
    return [image.tobytes() for image in result.images]


def test_same_seed_same_bytes(sd, artifacts):
    first = bytes_of(sd(PROMPT, seed=7, steps=3))
    assert bytes_of(sd(PROMPT, seed=7, steps=3)) == first
    assert bytes_of(Pipeline.load(artifacts("sd"))(PROMPT, seed=7, steps=3)) == first
    assert bytes_of(sd(PROMPT, seed=8, steps=3)) != first


def test_each_picture_of_a_count_is_that_of_its_seed_alone(sd):
    together = sd(PROMPT, seed=7, steps=3, count=3, sampler="euler-ancestral")
    assert together.seeds == [7, 8, 9]
    alone = [sd(PROMPT, seed=seed, steps=3, sampler="euler-ancestral") for seed in (7, 8, 9)]
    assert bytes_of(together) == [image for result in alone for image in bytes_of(result)]


def test_other_sizes_between_leave_no_trace(sd3):
    first = bytes_of(sd3(PROMPT, seed=1, steps=2, size=(64, 64)))
    other = sd3(PROMPT, seed=1, steps=2, size=(96, 48))
    assert other.images[0].size == (96, 48)
    assert bytes_of(sd3(PROMPT, seed=1, steps=2, size=(64, 64))) == first


def test_defaults_come_from_the_artifact(sd):
    manifest = sd.artifact.manifest
    request = sd(PROMPT, steps=1).request
    assert request.size == manifest.latents.default_size
    assert request.guidance == manifest.sampling.guidance
    assert request.sampler == manifest.sampling.sampler
    assert 0 <= request.seed < 2**32


def test_diffusers_names(sd):
    ours = sd(PROMPT, seed=3, steps=2, guidance=3.0, size=(72, 64), count=2)
    theirs = sd(
        PROMPT,
        seed=3,
        num_inference_steps=2,
        guidance_scale=3.0,
        width=72,
        height=64,
        num_images_per_prompt=2,
    )
    assert bytes_of(ours) == bytes_of(theirs)


def test_guidance_of_one_or_less_leaves_the_negative_prompt_out(sd):
    for guidance in (1.0, 0.0, -3):
        with_negative = sd(PROMPT, negative_prompt="a cat", seed=3, steps=2, guidance=guidance)
        assert bytes_of(with_negative) == bytes_of(sd(PROMPT, seed=3, steps=2, guidance=1))
    guided = [sd(PROMPT, negative_prompt=text, seed=3, steps=2, guidance=5) for text in ("a cat", "a house")]
    assert bytes_of(guided[0]) != bytes_of(guided[1])


def test_kinds_of_output_agree(sd):
    pictures, pixels, latents = (
        sd(PROMPT, seed=3, steps=2, count=2, output_type=kind).images for kind in ("pil", "np", "latent")
    )
    assert pixels.shape == (2, 64, 64, 3)
    assert pixels.dtype == latents.dtype == np.float32
    assert latents.shape == (2, 4, 8, 8)
    assert np.array_equal(np.asarray(pictures[1]), (pixels[1] * 255).round().astype(np.uint8))


def test_given_noise_replaces_the_seeds(sd):
    noise = np.concatenate([randn(seed, (1, 4, 8, 8)) for seed in (7, 8)])
    given = sd(PROMPT, seed=99, steps=2, count=2, latents=noise)
    assert bytes_of(given) == bytes_of(sd(PROMPT, seed=7, steps=2, count=2))


def test_steps_are_reported(sd):
    seen = []
    sd(PROMPT, seed=3, steps=3, count=2, sampler="euler", on_step=seen.append)
    assert [(step.image, step.index) for step in seen] == [(i, j) for i in range(2) for j in range(3)]
    assert {(step.steps, step.images) for step in seen} == {(3, 2)}
    assert seen[0].latents.shape == seen[0].estimate.shape == (1, 4, 8, 8)
    assert seen[0].timestep > seen[1].timestep > seen[2].timestep


def test_pndm_reports_its_extra_step_and_timesteps_as_diffusers_does(sd):
    seen = []

    def callback(pipeline, step, timestep, values):
        assert pipeline is sd
        seen.append((step, timestep, values["latents"].shape))

    sd(PROMPT, seed=3, steps=3, sampler="pndm", callback_on_step_end=callback)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    assert seen[1][1] == seen[2][1] < seen[0][1]


def test_cancelled_between_steps(sd):
    seen = []
    with pytest.raises(Cancelled):
        sd(PROMPT, steps=5, sampler="euler", on_step=seen.append, cancel=lambda: len(seen) == 2)
    assert len(seen) == 2
    with pytest.raises(Cancelled):
        sd(PROMPT, steps=5, on_step=seen.append, cancel=lambda: True)
    assert len(seen) == 2


def test_cancelled_before_anything_is_compiled(artifacts, monkeypatch):
    pipe = Pipeline.load(artifacts("sd3"))
    monkeypatch.setattr("sfumato.runtime.networks.Network.load", pytest.fail)
    with pytest.raises(Cancelled):
        pipe(PROMPT, cancel=lambda: True)


@pytest.mark.parametrize("stop", [Cancelled("stopped"), KeyboardInterrupt()])
def test_a_stopped_pipeline_goes_on_as_if_nothing_had_been(sd, stop):
    expected = bytes_of(sd(PROMPT, seed=7, steps=3))

    def on_step(step):
        raise stop

    with pytest.raises(type(stop)):
        sd("a cat", seed=8, steps=3, size=(72, 64), on_step=on_step)
    assert bytes_of(sd(PROMPT, seed=7, steps=3)) == expected


def test_memory_does_not_grow(sd):
    """Thirty pictures, a third of them cancelled, with 12 kB of pixels each."""

    def generate(seed):
        stop = seed % 3 == 0
        try:
            sd(PROMPT, seed=seed, steps=2, cancel=lambda: stop)
        except Cancelled:
            assert stop

    def thirty() -> None:
        for seed in range(30):
            generate(seed)
        gc.collect()

    thirty()
    growths = []
    for _ in range(3):  # a leak grows in every round, the allocator's own pools now and then
        resident = resident_bytes()
        thirty()
        growths.append(resident_bytes() - resident)
    assert min(growths) < 5_000_000

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    thirty()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()  # its own records are resident too, so the two are measured apart
    assert grown < 50_000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_times_of_stages(sd):
    seconds = sd(PROMPT, steps=2).seconds
    assert list(seconds) == ["load", "encode", "denoise", "decode", "total"]
    assert 0 < sum(seconds.values()) - seconds["total"] <= seconds["total"]


def test_parameters_text(sd):
    result = sd(PROMPT, negative_prompt="a cat", seed=7, steps=2, count=2, guidance=3, sampler="ddim")
    assert result.parameters(1).splitlines() == [
        PROMPT,
        "Negative prompt: a cat",
        "Steps: 2, Sampler: ddim, CFG scale: 3, Seed: 8, Size: 64x64, Model: sd, Version: sfumato 0.1.0",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (500, 512)}, r"size 500x512: both sides must be multiples of 8; nearest is 504x512"),
        ({"size": (1, 2)}, "nearest is 8x8"),
        ({"size": (0, 64)}, "width 0: must be"),
        ({"size": (64.0, 64)}, r"width 64\.0"),
        ({"size": 64}, "size 64: must be a width and a height"),
        ({"size": "64x64"}, "size '64x64': must be a width and a height"),
        ({"size": "64"}, "size '64': must be a width and a height"),
        ({"size": ("64", "64")}, "width '64': must be a whole number"),
        ({"size": (64, 64, 3)}, "must be a width and a height"),
        ({"size": (16384, 16384)}, "size 16384x16384: .*a model made for 64x64 takes 1048576 at most"),
        ({"size": (10**9, 8)}, "width 1000000000: must be a whole number from 1 to 1048576"),
        ({"size": (8, 10**30)}, "height 1000"),
        ({"width": 64}, "both width and height"),
        ({"steps": 0}, "steps 0: must be a whole number from 1 to 1000"),
        ({"steps": -4}, "steps -4"),
        ({"steps": 1.5}, "steps 1.5"),
        ({"steps": 100_000}, "steps 100000"),
        ({"guidance": float("nan")}, "guidance nan: must be a finite number"),
        ({"guidance": float("inf")}, "guidance inf"),
        ({"guidance": "5"}, "guidance '5'"),
        ({"guidance": True}, "guidance True"),
        ({"guidance": 1e300}, r"guidance 1e\+300: must be a finite number from -1000 to 1000"),
        ({"guidance": 10**400}, "guidance 1000"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**63}, "seed 9223372036854775808"),
        ({"seed": 2**63 - 1, "count": 2}, "seed 9223372036854775808"),
        ({"count": 0}, "count 0"),
        ({"count": True}, "count True"),
        ({"count": 10**9}, "count 1000000000: must be a whole number from 1 to 1000"),
        ({"sampler": "eulr"}, "'eulr'.*'euler'"),
        ({"sampler": 3}, "sampler 3: must be one text"),
        ({"sampler": "flow-euler"}, "sampler 'flow-euler': no such sampler for vp models"),
        ({"output_type": "jpg"}, "output_type 'jpg': one of pil, np, latent"),
        ({"latents": np.zeros((1, 4, 4, 4))}, "latents of shape"),
        ({"latents": np.full((1, 4, 8, 8), np.nan)}, "finite"),
        ({"latents": "noise"}, "latents: must be an array of numbers"),
        ({"latents": [[1, 2], [3]]}, "latents: must be an array of numbers"),
        ({"guidence": 3}, "unknown parameter 'guidence': did you mean 'guidance'"),
        ({"guidence_scale": 3}, "unknown parameter 'guidence_scale': did you mean 'guidance_scale'"),
        ({"inference_steps": 3}, "did you mean 'num_inference_steps'"),
        ({"heigth": 3}, "did you mean 'height'"),
        ({"latent": 3}, "did you mean 'latents'"),
        ({"xyz": 3}, "unknown parameter 'xyz': known are prompt, "),
        ({"steps": 3, "num_inference_steps": 4}, "mean the same"),
        ({"on_step": print, "callback_on_step_end": print}, "mean the same"),
        ({"negative_prompt": ["a", "b"]}, "must be one text"),
        ({"negative_prompt": "a \ud800"}, r"negative_prompt: '\\ud800' is half a character"),
    ],
)
def test_bad_requests_are_refused_before_any_work(artifacts, options, message):
    pipe = Pipeline.load(artifacts("sd"))
    pipe.encoders = None  # any work would fail on it
    with pytest.raises(InvalidRequest, match=message) as caught:
        pipe(PROMPT, **options)
    assert "\n" not in str(caught.value)


def test_overflow_is_an_error_rather_than_a_black_picture(sd):
    with np.errstate(over="ignore"), pytest.raises(SfumatoError, match="not finite"):
        sd.decoder(np.full((1, 4, 8, 8), 3e38, np.float32))


def test_sd3_sizes_are_multiples_of_sixteen(sd3):
    with pytest.raises(
        InvalidRequest, match="size 72x64: both sides must be multiples of 16; nearest is 80x64"
    ):
        sd3(PROMPT, size=(72, 64))


def test_size_beyond_the_position_embedding_is_named(sd3):
    with pytest.raises(
        InvalidRequest, match="size 256x256: the model knows positions for sides of 192 at most"
    ):
        sd3(PROMPT, size=(256, 256), steps=1)


def test_sizes_that_a_network_refuses_are_named(artifacts, tmp_path):
    """Folders that were converted before manifests told the largest side, and those of other programs."""
    folder = shutil.copytree(artifacts("sd3"), tmp_path / "sd3")
    manifest = json.loads((folder / "sfumato.json").read_text())
    del manifest["latents"]["largest_side"]
    (folder / "sfumato.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidRequest, match=r"hidden_states \[2, 16, 32, 32\].*choose another size"):
        Pipeline.load(folder)(PROMPT, size=(256, 256), steps=1)


def test_numpy_numbers_are_numbers(sd):
    request = sd(
        PROMPT, seed=np.int64(7), steps=np.int32(1), guidance=np.float32(3), size=np.array([64, 64])
    ).request
    assert (request.seed, request.steps, request.guidance, request.size) == (7, 1, 3.0, (64, 64))


@pytest.mark.parametrize(
    "prompt", ["", "apple " * 2000, "un été 猫 🐱\u200d\u202e", "\0", "e\u0301" * 50, "\uffff"]
)
def test_any_text_is_a_prompt(sd, prompt):
    assert len(sd(prompt, steps=1).images) == 1


@pytest.mark.parametrize("prompt", [None, b"cat", 3, ["a", "b"], "\udcff"])
def test_what_is_no_text_is_no_prompt(sd, prompt):
    with pytest.raises(InvalidRequest, match="prompt"):
        sd(prompt)


def test_a_cut_prompt_is_said_once_for_all_encoders(artifacts, caplog):
    pipe = Pipeline.load(artifacts("sdxl"))
    with caplog.at_level(logging.WARNING):
        pipe("apple " * 300, steps=1, count=2)
    (record,) = [record for record in caplog.records if record.name.startswith("sfumato")]
    assert record.getMessage() == (
        "prompt cut at 224 tokens of 300 (text_encoder, text_encoder_2): what follows is not seen"
    )


def altered(artifacts, name: str, folder: Path, **sections: dict) -> Path:
    """A copy of an artifact with changes to sections of its manifest."""
    shutil.copytree(artifacts(name), folder)
    manifest = json.loads((folder / "sfumato.json").read_text())
    for section, changes in sections.items():
        manifest[section].update(changes)
    (folder / "sfumato.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"sampling": {"sampler": "best"}}, "sampler 'best': no such sampler"),
        ({"sampling": {"prediction": "flow"}}, "no such sampler for flow models"),
        (
            {"latents": {"channels": 16, "preview": None}},
            r"unet/openvino_model.xml: input 'sample' is \[\?,4,\?,\?\]",
        ),
        ({"latents": {"factor": 4}}, "vae_decoder/openvino_model.xml: output 'sample' is"),
    ],
)
def test_manifest_at_odds_with_its_networks(artifacts, tmp_path, sections, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        Pipeline.load(altered(artifacts, "sd", tmp_path / "odd", **sections))(PROMPT, steps=1)
    assert "\n" not in str(caught.value)


def test_text_encoders_at_odds_with_the_denoiser(artifacts, tmp_path):
    folder = altered(artifacts, "sd3", tmp_path / "odd", conditioning={"joint_attention_dim": 100})
    with pytest.raises(ArtifactError, match="encoders do not fit together"):
        Pipeline.load(folder)(PROMPT, steps=1)
    folder = altered(artifacts, "sd3-no-t5", tmp_path / "wide", conditioning={"joint_attention_dim": 100})
    with pytest.raises(ArtifactError, match=r"transformer/openvino_model.xml: input 'encoder_hidden_states'"):
        Pipeline.load(folder)(PROMPT, steps=1)


def test_text_encoder_with_other_layers_than_the_manifest_says(artifacts, tmp_path):
    folder = altered(artifacts, "sdxl", tmp_path / "odd")
    manifest = json.loads((folder / "sfumato.json").read_text())
    manifest["components"]["text_encoder"]["hidden_states"] = 40
    (folder / "sfumato.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ArtifactError, match=r"text_encoder/openvino_model.xml: has no output 'hidden_states.38'"
    ):
        Pipeline.load(folder)(PROMPT, steps=1)


def test_generating_needs_no_torch_and_gives_the_same_bytes_in_each_process(artifacts):
    script = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "diffusers", "transformers", "openvino_telemetry"):
            raise ImportError(name + " is not for the runtime")

sys.meta_path.insert(0, Blocked())
from hashlib import sha256
from sfumato import Pipeline
result = Pipeline.load({str(artifacts("sd3"))!r})("a cat", seed=3, steps=1)
print(sha256(result.images[0].tobytes()).hexdigest())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    here = Pipeline.load(artifacts("sd3"))("a cat", seed=3, steps=1).images[0].tobytes()
    assert done.stdout.strip() == hashlib.sha256(here).hexdigest()


def test_telemetry_of_openvino_is_off():
    script = "import sfumato, openvino, sys; print(sys.modules['openvino_telemetry'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"numpy", "openvino", "PIL", "pydantic", "torch"}
    script = f"import sys, sfumato; print(sorted({heavy} & set(sys.modules)))"
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert time.perf_counter() - begin < 2
