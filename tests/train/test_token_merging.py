"""Token merging in diffusers' denoisers: what the merged graph computes, with gradients."""

import numpy as np
import openvino as ov
import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel

from sfumato.convert.components import export_of, trace
from sfumato.errors import InvalidRequest
from sfumato.graphs.token_merging import merge_tokens
from sfumato.train.token_merging import merging

UNET_SIZES = [(1, 1), (8, 8), (15, 17), (12, 36)]
MMDIT_SIZES = [(2, 2), (8, 8), (14, 22)]
CASES = [(name, size) for name in ("sd", "sdxl") for size in UNET_SIZES]
CASES += [(name, size) for name in ("sd3", "sd35") for size in MMDIT_SIZES]


def is_mmdit(name):
    return name.startswith("sd3")


@pytest.fixture(scope="module")
def denoisers(checkpoints):
    def load(name):
        kind = SD3Transformer2DModel if is_mmdit(name) else UNet2DConditionModel
        return kind.from_pretrained(checkpoints(name), subfolder="transformer" if is_mmdit(name) else "unet")

    return load


def inputs_of(model, size, seed=5):
    generator = np.random.Generator(np.random.PCG64(seed))
    inputs = {}
    for port in model.inputs:
        shape = port.get_partial_shape()
        sides = {1: (2,), 2: (2,), 3: (2, 11), 4: (2, None, *size)}[shape.rank.get_length()]
        last = shape[shape.rank.get_length() - 1]
        if port.any_name == "timestep":
            inputs["timestep"] = np.array([7.5, 7.5] if port.element_type == ov.Type.f32 else [7])
        elif len(sides) == 4:
            inputs[port.any_name] = generator.standard_normal((2, shape[1].get_length(), *size), np.float32)
        else:
            inputs[port.any_name] = generator.standard_normal((*sides, last.get_length()), np.float32)
    return inputs


def call(denoiser, inputs):
    given = {name: torch.from_numpy(value) for name, value in inputs.items()}
    if "text_embeds" in given:
        given["added_cond_kwargs"] = {name: given.pop(name) for name in ("text_embeds", "time_ids")}
    if given["timestep"].dtype == torch.int64:
        given["timestep"] = given["timestep"][0]
    else:
        given["timestep"] = given["timestep"].float()
    return denoiser(**given, return_dict=False)[0]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_it_is_what_the_graph_computes(artifacts, denoisers, name, size):
    denoiser = denoisers(name).eval()
    component = "transformer" if is_mmdit(name) else "unet"
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    for ratio, method in ((0.3, "match"), (0.75, "match"), (0.5, "pool"), (0.75, "pool")):
        model = ov.Core().read_model(artifacts(name) / component / "openvino_model.xml")
        merge_tokens(model, ratio, method)
        inputs = inputs_of(model, size)
        expected = ov.Core().compile_model(model, "CPU", exact)(inputs)["out_sample"]
        with torch.no_grad():
            whole = call(denoiser, inputs)
            with merging(denoiser, ratio, method):
                found = call(denoiser, inputs)
            assert torch.equal(call(denoiser, inputs), whole)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
        if min(size) > 2:
            assert (found - whole).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["match", "pool"])
def test_the_same_levels_merge_as_in_the_graph(method):
    """Four levels with attention at the first three, as SD 1.x has it: the third one merges nothing."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=8,
    ).eval()
    model = trace(export_of("unet", unet))
    inputs = inputs_of(model, (16, 16))
    assert merge_tokens(model, 0.5, method) == 6  # of 10: one on the way down, two on the way up, a level
    expected = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)[0]
    with torch.no_grad(), merging(unet, 0.5, method):
        np.testing.assert_allclose(call(unet, inputs).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sd35"])
@pytest.mark.parametrize("method", ["match", "pool"])
def test_gradients_are_the_same_with_gradient_checkpointing(artifacts, denoisers, name, method):
    """Even where another run comes between the forward and the backward pass."""
    component = "transformer" if is_mmdit(name) else "unet"
    inputs = inputs_of(ov.Core().read_model(artifacts(name) / component / "openvino_model.xml"), (8, 10))
    others = {key: value[::-1].copy() for key, value in inputs.items()}
    gradients = []
    for checkpointing in (False, True):
        denoiser = denoisers(name).train()
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        with merging(denoiser, 0.5, method):
            loss = call(denoiser, inputs).square().mean()
            call(denoiser, others)
            loss.backward()
        gradients.append([p.grad for p in denoiser.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.allclose(*pair, atol=1e-7) for pair in zip(*gradients, strict=True))


def test_gradients_flow_through_merged_tokens(denoisers):
    denoiser = denoisers("sd")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    states = torch.zeros(1, 4, 32)
    with merging(denoiser, 0.75):
        denoiser(latents, 3, states).sample.square().mean().backward()
    assert latents.grad.abs().min() > 0


def test_a_picture_does_not_depend_on_its_batch(denoisers):
    denoiser = denoisers("sd3").eval()
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(3, 16, 8, 8, generator=generator)
    states, pooled = torch.randn(3, 6, 96, generator=generator), torch.randn(3, 80, generator=generator)
    times = torch.full((3,), 500.0)
    with torch.no_grad(), merging(denoiser, 0.5):
        together = denoiser(latents, states, pooled, times).sample
        alone = denoiser(latents[1:2], states[1:2], pooled[1:2], times[:1]).sample
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)


def test_ratio_zero_and_remove_leave_no_hooks(denoisers):
    denoiser = denoisers("sd")
    merging(denoiser, 0.0)
    merging(denoiser, 0.5).remove()
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in denoiser.modules())


def test_bad_input_is_refused(denoisers):
    with pytest.raises(InvalidRequest, match="share of the tokens"):
        merging(denoisers("sd"), 1.0)
    with pytest.raises(InvalidRequest, match="Linear is no UNet"):
        merging(torch.nn.Linear(2, 2), 0.5)
