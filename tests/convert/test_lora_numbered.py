"""The first LoRA format: numbered layers in the order of the network's modules."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfumato.convert.checkpoints import open_checkpoint
from sfumato.convert.lora import fuse_all, read_lora
from sfumato.convert.weights import load_module
from sfumato.errors import CheckpointError

UNET = ("Attention", "GEGLU")
Tensors = dict[str, torch.Tensor]


def trained(module: torch.nn.Module, classes: tuple[str, ...]) -> dict[str, torch.nn.Module]:
    """Linear layers inside modules of the given classes, as the format's first writer went through them."""
    return {
        f"{name}.{inner}": layer
        for name, owner in module.named_modules()
        if type(owner).__name__ in classes
        for inner, layer in owner.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }


def old_order(paths: list[str]) -> list[str]:
    """diffusers' modules as they stood until 0.17, the feed-forward between the attentions."""
    rank = {"attn1": 0, "ff": 1, "attn2": 2}
    blocks = list(dict.fromkeys(path.rpartition("transformer_blocks.0.")[0] for path in paths))

    def key(path: str) -> tuple[int, int]:
        block, _, rest = path.rpartition("transformer_blocks.0.")
        return blocks.index(block), rank[rest.split(".")[0]]

    return sorted(paths, key=key)


def write(
    file: Path, parts: dict[str, tuple[list[str], dict[str, torch.nn.Module]]], classes: dict[str, list[str]]
) -> dict[str, Tensors]:
    """Random numbered layers; returns their changes by part and path."""
    generator = torch.Generator().manual_seed(0)
    tensors: Tensors = {}
    changes: dict[str, Tensors] = {}
    metadata = {name: json.dumps(each) for name, each in classes.items()}
    for name, (paths, layers) in parts.items():
        for i, path in enumerate(paths):
            outputs, inputs = layers[path].weight.shape
            up = torch.randn((outputs, 4), generator=generator)
            down = torch.randn((4, inputs), generator=generator)
            tensors |= {f"{name}:{i}:up": up, f"{name}:{i}:down": down}
            metadata[f"{name}:{i}:rank"] = "4"
            changes.setdefault(name, {})[path] = up @ down
    save_file(tensors, file, metadata)
    return changes


def load(folder: Path, part: str) -> torch.nn.Module:
    return load_module(open_checkpoint(folder).parts[part])


@pytest.mark.parametrize(
    ("classes", "order"),
    [(("Attention",), list), (UNET, list), (UNET, old_order)],
    ids=["attention", "today", "before-0.17"],
)
def test_numbers_follow_the_modules(classes, order, checkpoints, tmp_path):
    folder, file = checkpoints("sd"), tmp_path / "lora.safetensors"
    layers = trained(load(folder, "unet"), classes)
    texts = trained(load(folder, "text_encoder"), ("CLIPAttention",))
    names = [{"Attention": "CrossAttention"}.get(each, each) for each in classes]
    changes = write(
        file,
        {"unet": (order(list(layers)), layers), "text_encoder": (list(texts), texts)},
        {"unet": names, "text_encoder": ["CLIPAttention"]},
    )
    lora = read_lora(file, 0.5, open_checkpoint(folder))
    for part, expected in changes.items():
        module, plain = load(folder, part), load(folder, part).state_dict()
        fuse_all([lora], part, module)
        for name, weight in module.state_dict().items():
            change = expected.get(name.removesuffix(".weight"))
            before = plain[name] if change is None else plain[name] + 0.5 * change
            torch.testing.assert_close(weight, before, rtol=1e-5, atol=1e-5, msg=name)


def test_what_the_numbers_leave_open_is_refused(checkpoints, tmp_path):
    folder, file = checkpoints("sd"), tmp_path / "lora.safetensors"
    layers = trained(load(folder, "unet"), ("Attention",))
    paths = list(layers)

    def refused(paths: list[str], classes: dict[str, list[str]], part: str = "unet") -> str:
        write(file, {part: (paths, layers)}, classes)
        with pytest.raises(CheckpointError) as caught:
            read_lora(file, 1.0, open_checkpoint(folder))
        assert str(file) in str(caught.value)
        return str(caught.value)

    attention = {"unet": ["CrossAttention"]}
    assert "made for another model" in refused(paths[:-1], attention)
    assert "made for another model" in refused([*paths[1:3], paths[0], *paths[3:]][::-1], attention)
    assert "it says None" in refused(paths, {})
    assert "ResnetBlock2D" in refused(paths, {"unet": ["CrossAttention", "ResnetBlock2D"]})
    assert "checkpoint has not" in refused(paths, attention, part="prior")


def test_missing_halves_and_strangers_are_named(checkpoints, tmp_path):
    file = tmp_path / "lora.safetensors"
    for tensors, name in (
        ({"unet:0:up": torch.ones(2, 1)}, "unet:0 is not complete"),
        ({"unet:1:up": torch.ones(2, 1), "unet:1:down": torch.ones(1, 2)}, "unet:0 is not complete"),
        ({"unet:0:up": torch.ones(2, 1), "<s1>": torch.ones(4)}, "<s1>"),
    ):
        save_file(tensors, file, {"unet": '["CrossAttention"]'})
        with pytest.raises(CheckpointError, match=name):
            read_lora(file, 1.0, open_checkpoint(checkpoints("sd")))
