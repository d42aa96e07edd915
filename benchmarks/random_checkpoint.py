"""A full-size stand-in: the published configuration of a model with reproducible random weights.

    pip install --no-deps open_clip_torch==3.3.0     # brings CLIP's vocabulary (MIT)
    python benchmarks/random_checkpoint.py sd15 checkpoints/sd15

writes a diffusers folder in 16 bits, one tensor at a time, for measurements of speed, memory and numerical
parity. The pictures are noise.
"""

import argparse
import gzip
import importlib.util
import json
import math
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from full_size import MODELS, Network, Stand
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from sfumato.convert.single_file.tokenizers import clip_vocabulary

SHARD = 5 * 10**9
CONFIGS = {
    CLIPTextModel: CLIPTextConfig,
    CLIPTextModelWithProjection: CLIPTextConfig,
    T5EncoderModel: T5Config,
}
CLASSES: dict[str, Any] = {
    each.__name__: each for each in (AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel, *CONFIGS)
}


@dataclass(frozen=True)
class Tensor:
    """One tensor to write: name, shape and how its values are made."""

    name: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return 2 * math.prod(self.shape)

    def values(self, dtype: np.dtype[Any] | str) -> np.ndarray:
        """Norms about 1, biases about 0, matrices of variance 1 / inputs: activations stay in range."""
        if self.name.endswith("pos_embed.pos_embed"):
            side = math.isqrt(self.shape[1])
            table = get_2d_sincos_pos_embed(self.shape[2], side, base_size=64, output_type="pt")
            values = table[None].numpy().astype(np.float32)
        else:
            random = np.random.Generator(np.random.SFC64(zlib.crc32(self.name.encode())))
            values = random.standard_normal(self.shape, np.float32)
            if len(self.shape) == 1:
                values = values * 0.02 + (1.0 if self.name.endswith("weight") else 0.0)
            else:
                values *= 1 / math.sqrt(math.prod(self.shape[1:]))
        if dtype == "BF16":
            return (values.view(np.uint32) >> 16).astype(np.uint16)
        return values.astype(np.float16)


def tensors_of(network: Network) -> list[Tensor]:
    """Names and shapes of a network's state dict, in order, without its memory; checks their number."""
    kind = CLASSES[network.class_name]
    with torch.device("meta"):
        module = kind(CONFIGS[kind](**network.config)) if kind in CONFIGS else kind(**network.config)
    found = sum(parameter.numel() for parameter in module.parameters())
    if abs(found / 1e6 - network.millions) > 0.01:
        sys.exit(f"error: {network.class_name} has {found / 1e6:.2f} M parameters, not {network.millions}")
    state = module.state_dict()
    tied = {"encoder.embed_tokens.weight"} & state.keys()  # T5 stores its table once, as `shared`
    prefix = "text_model." if kind is CLIPTextModel else ""  # as published files have it
    return [Tensor(prefix + name, tuple(value.shape)) for name, value in state.items() if name not in tied]


def write_network(network: Network, folder: Path) -> None:
    """Write config.json and the weights, in shards of at most SHARD bytes."""
    folder.mkdir(parents=True)
    kind = CLASSES[network.class_name]
    if kind in CONFIGS:
        config = CONFIGS[kind](**network.config).to_dict() | {"architectures": [network.class_name]}
    else:
        config = {"_class_name": network.class_name, **network.config}
    write_json(folder / "config.json", config)
    stem = "model" if kind in CONFIGS else "diffusion_pytorch_model"
    shards = list(split(tensors_of(network)))
    names = [f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        write_shard(folder / name, shard, network.dtype)
    if len(shards) > 1:
        weight_map = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        total = sum(t.bytes for shard in shards for t in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def split(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors, in order, into shards."""
    shard: list[Tensor] = []
    for tensor in tensors:
        if shard and sum(each.bytes for each in shard) + tensor.bytes > SHARD:
            yield shard
            shard = []
        shard.append(tensor)
    yield shard


def write_shard(path: Path, tensors: list[Tensor], dtype: str) -> None:
    """A safetensors file: length of the header, header, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.bytes
        header[tensor.name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(tensor.values(dtype).tobytes())


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """CLIP's tokens and merges, from the list of merges that open_clip ships."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.submodule_search_locations is None:
        sys.exit("error: CLIP's vocabulary is missing: pip install --no-deps open_clip_torch==3.3.0")
    file = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    return clip_vocabulary(gzip.decompress(file.read_bytes()).decode().split("\n"))


def write_clip_tokenizer(folder: Path, pad: str) -> None:
    """The tokenizer that CLIP was trained with; pad: its padding token."""
    folder.mkdir(parents=True)
    tokens, merges = vocabulary()
    write_json(folder / "vocab.json", tokens)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77, pad_token=pad)
    tokenizer.save_pretrained(folder)


def write_t5_tokenizer(folder: Path) -> None:
    """A unigram tokenizer of T5's size over CLIP's words; T5's own vocabulary cannot be had here."""
    tokens, _ = vocabulary()
    words = [f"▁{token[:-4]}" for token in tokens if token.endswith("</w>") and token[:-4].isalpha()]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    letters = [chr(code) for code in range(33, 127)]
    pieces += [(piece, -8.0 - i / 4096) for i, piece in enumerate(dict.fromkeys([*letters, *words]))]
    core = Tokenizer(tokenizer_models.Unigram(pieces[:32000], unk_id=2))
    core.normalizer = normalizers.Replace(" {2,}", " ")
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    T5TokenizerFast(tokenizer_object=core, model_max_length=512, extra_ids=100).save_pretrained(folder)


def write_checkpoint(stand: Stand, folder: Path, *, without: frozenset[str] = frozenset()) -> None:
    """Write the whole diffusers folder; without: parts to leave out, such as `text_encoder_3`."""
    index: dict[str, Any] = {"_class_name": stand.pipeline, "_diffusers_version": "0.42.1", **stand.options}
    for name, network in stand.networks.items():
        tokenizer = name.replace("text_encoder", "tokenizer")
        if name in without:
            index |= {name: [None, None], tokenizer: [None, None]}
            continue
        print(f"{name}: {network.class_name}, {network.millions} M parameters", file=sys.stderr)
        write_network(network, folder / name)
        text = CLASSES[network.class_name] in CONFIGS
        index[name] = ["transformers" if text else "diffusers", network.class_name]
        if not text:
            continue
        if network.class_name == "T5EncoderModel":
            write_t5_tokenizer(folder / tokenizer)
            index[tokenizer] = ["transformers", "T5TokenizerFast"]
        else:
            write_clip_tokenizer(folder / tokenizer, stand.pads.get(tokenizer, "<|endoftext|>"))
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
    scheduler: Mapping[str, Any] = stand.scheduler
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", dict(scheduler))
    write_json(folder / "model_index.json", index)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--without-t5", action="store_true")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        sys.exit(f"error: {arguments.folder} exists already")
    without = frozenset({"text_encoder_3"} if arguments.without_t5 else ())
    write_checkpoint(MODELS[arguments.name], arguments.folder, without=without)


if __name__ == "__main__":
    main()
