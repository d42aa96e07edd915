"""SD3's table of positions in two: the same positions for every size; tables of another kind stay."""

from types import SimpleNamespace

import openvino as ov
import pytest
import torch
from diffusers.models.embeddings import PatchEmbed

from sfumato.convert.positions import split_positions

SIDE = 12


@pytest.fixture
def embed() -> PatchEmbed:
    torch.manual_seed(0)
    return PatchEmbed(
        height=16, width=16, patch_size=2, in_channels=4, embed_dim=32, pos_embed_max_size=SIDE
    ).requires_grad_(False)


@pytest.mark.parametrize("size", [(24, 24), (2, 2), (16, 22), (6, 24), (22, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_positions_are_those_of_the_table(embed, size, dtype):
    embed.pos_embed = embed.pos_embed.to(dtype)
    latents = torch.randn(2, 4, *size)
    expected = embed(latents)
    transformer = SimpleNamespace(pos_embed=embed)
    split_positions(transformer)
    assert transformer.pos_embed is not embed
    assert torch.equal(transformer.pos_embed(latents), expected)


@pytest.mark.parametrize("place", [(0, 5, 3), (0, 5, 20), (0, SIDE**2 - 1, 31)])
def test_a_table_that_was_trained_stays(embed, place):
    embed.pos_embed[place] += 1
    transformer = SimpleNamespace(pos_embed=embed)
    split_positions(transformer)
    assert transformer.pos_embed is embed


def test_an_artifact_has_no_table(artifacts):
    model = ov.Core().read_model(artifacts("sd3") / "transformer/openvino_model.xml")
    shapes = {tuple(op.shape) for op in model.get_ops() if op.get_type_name() == "Constant"}
    assert (SIDE, 32) in shapes
    assert not any(SIDE**2 in shape for shape in shapes)
