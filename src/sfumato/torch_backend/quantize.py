"""What is done to a loaded PyTorch network in place: quantizing its linear layers, compiling its blocks."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from ..errors import InvalidRequest, MissingDependency

INT4_GROUPS = (128, 64, 32)
"""Group sizes of torchao's kernel, best first: the first that divides a layer's inputs is taken."""
FP8_CAPABILITY = (8, 9)
INT4_CAPABILITY = (8, 0)
BLOCKS = ("JointTransformerBlock", "BasicTransformerBlock")
"""The blocks that denoisers repeat. Compiled one by one they are compiled once, not once each."""
PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao", "int4": "torchao", "fp8": "torchao"}


def check_quant(quant: str, device: Any) -> None:
    """Raise MissingDependency without the package that `quant` needs, InvalidRequest on too old a GPU.

    device: a `torch.device`.
    """
    if quant == "none":
        return
    package = PACKAGES[quant]
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"quant={quant}: needs the package {error.name!r}; install it with `pip install 'sfumato[gpu]'`"
        ) from error
    least = {"fp8": FP8_CAPABILITY, "int4": INT4_CAPABILITY}.get(quant)
    if least is None:
        return
    import torch

    found = torch.cuda.get_device_capability(device)
    if found < least:
        name = torch.cuda.get_device_name(device)
        raise InvalidRequest(
            f"quant={quant}: needs a GPU of compute capability {least[0]}.{least[1]} or more, and {name} has "
            f"{found[0]}.{found[1]}; give quant=int8 or nf4"
        )


def quantize(module: Any, quant: str, *, dtype: Any, device: Any) -> int:
    """Quantize a network's linear layers on `device`, where they stay; the number of layers.

    module: a `torch.nn.Module` in floating point. dtype: the `torch.dtype` to compute in. Layers that the
    network's class keeps in float32, and those whose inputs no group size divides, stay as they are. Raises
    InvalidRequest where no layer is left.
    """
    layers = list(_layers(module, quant))
    if not layers:
        hint = (
            f" (inputs in multiples of {INT4_GROUPS[-1]}); give quant=int8 or nf4" if quant == "int4" else ""
        )
        raise InvalidRequest(f"quant={quant}: no layer of the {type(module).__name__} fits{hint}")
    apply: Callable[..., None] = _nf4 if quant == "nf4" else _by_torchao
    for parent, name, layer in layers:
        apply(parent, name, layer, quant=quant, dtype=dtype, device=device)
    return len(layers)


def held_bytes(module: Any) -> int:
    """Bytes of a network's weights as it holds them, scales among them, shared ones once."""
    held = {each.data_ptr(): each.nbytes for whole in module.state_dict().values() for each in _held(whole)}
    return sum(held.values())


def compile_blocks(denoiser: Any) -> None:
    """Have PyTorch compile a denoiser's repeated blocks when they first run."""
    for module in denoiser.modules():
        if type(module).__name__ in BLOCKS:
            module.compile()


def _layers(module: Any, quant: str) -> Iterator[tuple[Any, str, Any]]:
    """The linear layers to quantize, each with the module that has it and its name there."""
    import torch

    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    for path, parent in module.named_modules():
        for name, layer in parent.named_children():
            whole = kept.isdisjoint([*path.split("."), name])
            fits = quant != "int4" or _group(layer) is not None
            if whole and type(layer) is torch.nn.Linear and fits:
                yield parent, name, layer


def _group(layer: Any) -> int | None:
    return next((size for size in INT4_GROUPS if not getattr(layer, "in_features", 1) % size), None)


def _nf4(parent: Any, name: str, layer: Any, *, quant: str, dtype: Any, device: Any) -> None:
    """QLoRA's normal float (Dettmers et al. 2023): blocks of 64, scales in float32.

    Quantizing these too would save 0.37 bits of 4.5 a weight, and take time and precision.
    """
    import bitsandbytes

    layer.to(device)
    options = {"quant_type": quant, "compress_statistics": False}
    made = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, layer.bias is not None, dtype, device="meta", **options
    )
    weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, module=made, **options)
    made.weight = weight.to(device)
    made.bias = layer.bias
    if not _suits_avx512(layer, dtype):
        made.support_avx512bf16_for_cpu = False
    setattr(parent, name, made.train(layer.training))


def _suits_avx512(layer: Any, dtype: Any) -> bool:
    """bitsandbytes' fused kernel (0.50) rounds to bf16 whatever is asked for, and fails on other shapes."""
    import torch

    return dtype == torch.bfloat16 and not (layer.in_features % 64 or layer.out_features % 32)


def _by_torchao(parent: Any, name: str, layer: Any, *, quant: str, dtype: Any, device: Any) -> None:
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int4WeightOnlyConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    # Their way of setting the compiler's options would change those of every other network too.
    shared: dict[str, Any] = {"set_inductor_config": False}
    if quant == "int8":
        config = Int8WeightOnlyConfig(**shared)
    elif quant == "int4":
        config = Int4WeightOnlyConfig(
            group_size=_group(layer), int4_packing_format="tile_packed_to_4d", **shared
        )
    else:
        config = Float8DynamicActivationFloat8WeightConfig(**shared)
    quantize_(layer.to(device), config)


def _held(tensor: Any) -> Iterator[Any]:
    """What a tensor holds: torchao's say the shape and type that they stand for, and hold others."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _held(getattr(tensor, name))
