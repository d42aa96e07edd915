"""Skip-layer guidance: the graph without some blocks, and the picture that diffusers makes with it."""

import numpy as np
import openvino
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

import sfumato
import tiny
from sfumato.artifact import load_artifact
from sfumato.errors import InvalidRequest
from sfumato.runtime.devices import Device
from sfumato.runtime.guidance import Guidance, GuidedModel
from sfumato.runtime.networks import Network
from sfumato.runtime.noise import Generator
from sfumato.runtime.samplers import SAMPLERS, run
from sfumato.runtime.skip_layers import SkipLayers, SkippingDenoiser, skip_layers

LATENTS = (1, 16, 8, 8)
BLOCKS = 4
STEPS = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, checkpoints):
    """The tiny SD3.5 with more blocks, the first two of dual attention."""
    pipe = StableDiffusion3Pipeline.from_pretrained(checkpoints("sd35"))
    config = {**pipe.transformer.config, "num_layers": BLOCKS, "dual_attention_layers": (0, 1)}
    torch.manual_seed(3)
    pipe.transformer = SD3Transformer2DModel.from_config(config)
    folder = tmp_path_factory.mktemp("sd35-deep") / "checkpoint"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(checkpoint):
    loaded = StableDiffusion3Pipeline.from_pretrained(checkpoint)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def artifact(checkpoint):
    out = checkpoint.parent / "artifact"
    sfumato.convert(checkpoint, out, precision="fp32")
    return load_artifact(out)


@pytest.fixture(scope="module")
def inputs(pipe):
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(LATENTS, generator=generator),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn((1, 20, 96), generator=generator),
        "pooled_projections": torch.randn((1, 80), generator=generator),
    }


def theirs(pipe, inputs, layers):
    with torch.no_grad():
        return pipe.transformer(**inputs, skip_layers=list(layers)).sample.numpy()


def ours(artifact, inputs, layers):
    edit = skip_layers(layers) if layers else None
    network = Network(artifact, "transformer", Device("CPU", "f32", cached=False), edit)
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    return network(arrays, {"out_sample": LATENTS})["out_sample"]


def relative_error(ours, theirs):
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("layers", [(0,), (1,), (2,), (3,), (1, 2), (2, 1), (0, 1, 2), (0, 3), (0, 1, 2, 3)])
def test_the_graph_skips_what_diffusers_skips(pipe, artifact, inputs, layers):
    expected = theirs(pipe, inputs, layers)
    assert relative_error(ours(artifact, inputs, layers), expected) < 1e-4
    assert relative_error(ours(artifact, inputs, ()), expected) > 1e-2


def test_compressed_weights_do_not_hide_blocks(pipe, inputs, checkpoint):
    out = checkpoint.parent / "int8"
    sfumato.convert(checkpoint, out, weights="int8")
    layers = (0, 1, 2)
    expected, compressed = theirs(pipe, inputs, layers), load_artifact(out)
    assert relative_error(ours(compressed, inputs, layers), expected) < 0.01
    assert relative_error(ours(compressed, inputs, ()), expected) > 0.04


def test_a_graph_that_was_saved_again_can_be_edited(pipe, artifact, inputs, tmp_path):
    core = openvino.Core()
    graph = core.read_model(artifact.path / "transformer" / "openvino_model.xml")
    skip_layers((2,)).apply(graph)
    openvino.save_model(graph, tmp_path / "once.xml", compress_to_fp16=False)
    again = core.read_model(tmp_path / "once.xml")
    skip_layers((1,)).apply(again)
    compiled = core.compile_model(again, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled({name: tensor.numpy() for name, tensor in inputs.items()})["out_sample"]
    assert relative_error(result, theirs(pipe, inputs, (1, 2))) < 1e-4


@pytest.mark.parametrize("window", [{}, {"start": 0.3, "stop": 0.7}])
def test_the_picture_is_that_of_diffusers(pipe, artifact, window):
    skip = SkipLayers((1, 2), **window)
    denoiser = SkippingDenoiser(artifact, Device("CPU", "f32"))
    prompt, negative, pooled, other_pooled = (
        each.detach().numpy()
        for each in pipe.encode_prompt(
            "a red apple", None, None, negative_prompt="green", max_sequence_length=tiny.T5_TOKENS
        )
    )
    conditioning = [
        {"encoder_hidden_states": states, "pooled_projections": vector}
        for states, vector in ((prompt, pooled), (negative, other_pooled))
    ]
    sampling = artifact.manifest.sampling
    sampler = SAMPLERS[sampling.sampler]
    schedule = sampler.schedule(sampling.scheduler, STEPS)
    network = Network(artifact, "transformer", Device("CPU", "f32"))

    def painted(guidance, skipping=None):
        model = GuidedModel(network, artifact.family, conditioning, guidance, schedule, skipping)
        model.load(LATENTS)
        noise = Generator(5)
        return run(sampler, model, noise.randn(LATENTS), schedule, "flow", noise)

    names = {f"skip_layer_guidance_{name}": value for name, value in window.items()}
    expected = pipe(
        "a red apple",
        negative_prompt="green",
        max_sequence_length=tiny.T5_TOKENS,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        latents=torch.from_numpy(Generator(5).randn(LATENTS)),
        width=64,
        height=64,
        skip_guidance_layers=[1, 2],
        output_type="latent",
        **names,
    ).images.numpy()
    assert relative_error(painted(Guidance(4.0, skip=skip), denoiser.without(skip)), expected) < 1e-3
    assert relative_error(painted(Guidance(4.0)), expected) > 5e-3


def test_a_network_is_made_for_each_choice_of_layers(artifact):
    denoiser = SkippingDenoiser(artifact, Device("CPU"))
    first = denoiser.without(SkipLayers((1,)))
    assert denoiser.without(SkipLayers((1,), scale=1.0)) is first
    assert denoiser.without(SkipLayers((2,))) is not first
    denoiser.release()


def test_layers_that_a_model_has_not_are_refused(artifact):
    denoiser = SkippingDenoiser(artifact, Device("CPU"))
    with pytest.raises(InvalidRequest, match="skipped layer 4: the model has layers 0 to 3"):
        denoiser.check(SkipLayers((1, 4)))
    graph = openvino.Core().read_model(artifact.path / "transformer" / "openvino_model.xml")
    with pytest.raises(InvalidRequest, match="skipped layer 9: the model has layers 0 to 3"):
        skip_layers((9,)).apply(graph)


def test_models_that_are_no_transformer_are_refused(artifacts):
    denoiser = SkippingDenoiser(load_artifact(artifacts("sd")), Device("CPU"))
    with pytest.raises(InvalidRequest, match=r"only SD3's denoiser has them, but .* of the family sd; leave"):
        denoiser.without(SkipLayers((0,)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": ()}, "skipped layers: none are given"),
        ({"layers": (-1,)}, "skipped layer -1: must be a whole number"),
        ({"layers": (1.5,)}, "skipped layer 1.5"),
        ({"layers": (1,), "scale": float("inf")}, "skip-layer scale inf: must be a finite number"),
        (
            {"layers": (1,), "start": 0.5, "stop": 0.5},
            r"from 0\.5 to 0\.5: must be fractions of the steps, rising",
        ),
        ({"layers": (1,), "stop": 1.5}, r"to 1\.5"),
    ],
)
def test_nonsense_is_refused(values, message):
    with pytest.raises(InvalidRequest, match=message):
        SkipLayers(**values)
