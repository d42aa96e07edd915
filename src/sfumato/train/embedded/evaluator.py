"""The evaluator of the embedded models: a dual encoder of pictures and captions, and of styles.

It is trained on every split of the art, the held-out ones too: it has to read pictures of concepts and
style-concept pairs that generators never saw, and it takes no part in training them.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from sfumato.compare.evaluator import IMAGE, MANIFEST, OUTPUTS, TEXT, TOKENIZER
from sfumato.files import atomic_folder, hash_file
from sfumato.train.embedded import captions, dataset
from sfumato.train.embedded.augmentation import augment
from sfumato.train.embedded.dual_encoder import SIDE, TOKENS, ImageTower, TextTower
from sfumato.train.embedded.group_norm import use_channels_last
from sfumato.train.embedded.latents import to_tensor
from sfumato.train.embedded.tokenizers import END, train_clip
from sfumato.train.loop import Plan, Task, is_main, run

VOCABULARY = 3000
STYLE_WEIGHT = 1.0
EMA_DECAY = 0.99  # of a thousand steps; the loop's own is for longer runs


class EvaluatorTask(Task):
    """Pictures and captions that belong together find each other in a batch; styles are told apart."""

    def __init__(self, pictures: np.ndarray, records: list[dataset.Record], tokenizer: Tokenizer) -> None:
        super().__init__()
        self.pictures, self.records, self.tokenizer = pictures, records, tokenizer
        self.styles = tuple(sorted({record.style for record in records}))
        self.style = torch.tensor([self.styles.index(record.style) for record in records])
        concepts = {record.concept: number for number, record in enumerate(records)}
        self.concept = torch.tensor([concepts[record.concept] for record in records])
        self.image = ImageTower(len(self.styles))
        self.text = TextTower(tokenizer.get_vocab_size())
        self.temperature = nn.Parameter(torch.tensor(2.5))
        use_channels_last(self.image)

    def draw(self, size: int, rng: np.random.Generator, generator: torch.Generator) -> tuple[Any, ...]:
        rows = rng.choice(len(self.records), min(size, len(self.records)), replace=False)
        chosen = [self.records[row] for row in rows]
        texts = [captions.caption(record, rng) for record in chosen]
        words = [text.replace(",", " ").split() for text in texts]
        named = torch.tensor([record.style in each for record, each in zip(chosen, words, strict=True)])
        ids, mask = tokenize(self.tokenizer, texts)
        mirror = torch.tensor([record.mirrors for record in chosen])
        x = augment(to_tensor(self.pictures[rows]), mirror, generator)
        x = x.contiguous(memory_format=torch.channels_last)
        return x, ids, mask, named, self.concept[rows], self.style[rows]

    def forward(self, *batch: Any) -> dict[str, Tensor]:
        x, ids, mask, named, concept, style = batch
        embedding, _, guess, *_ = self.image(x)
        logits = (embedding @ self.text(ids, mask).T).float() * self.temperature.clamp(max=4.6).exp()
        target = torch.arange(len(x), device=x.device)
        true_too = also_true(named, concept, style)
        logits = logits.masked_fill(true_too, -1e4)
        matching = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        styling = functional.cross_entropy(guess.float(), style)
        hits = (logits.argmax(1) == target).float().mean()
        return {
            "loss": matching + STYLE_WEIGHT * styling,
            "matching": matching,
            "styling": styling,
            "hits": hits,
        }

    def matrices(self) -> list[nn.Parameter]:
        inner = (nn.Conv2d, nn.Linear)
        return [
            module.weight
            for module in self.modules()
            if isinstance(module, inner) and module.weight is not None
        ]


def also_true(named: Tensor, concept: Tensor, style: Tensor) -> Tensor:
    """Which captions (columns) hold for another's picture (rows), bool [n, n]: they are no counterexamples.

    named: bool [n], the caption names its style. concept, style: int64 [n], of picture and caption alike.
    """
    same = (concept[:, None] == concept) & ((style[:, None] == style) | ~named)
    return same & ~torch.eye(len(named), dtype=torch.bool, device=named.device)


def make_tokenizer(records: list[dataset.Record], vocabulary: int = VOCABULARY) -> Tokenizer:
    """A tokenizer for captions of these records that cuts and pads to 16 tokens."""
    grounds = [f"on a {r.background} background" for r in records if r.background != "white"]
    core: Tokenizer = train_clip(captions.corpus(records) + grounds, vocabulary, TOKENS).backend_tokenizer
    core.enable_truncation(TOKENS)
    core.enable_padding(length=TOKENS, pad_id=core.token_to_id(END), pad_token=END)
    return core


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Token ids and mask (1 for tokens, 0 for padding), both int64 [n, 16]."""
    encodings = tokenizer.encode_batch(texts)
    ids = torch.tensor([encoding.ids for encoding in encodings])
    return ids, torch.tensor([encoding.attention_mask for encoding in encodings])


def train(data: Path, out: Path, plan: Plan, say: Callable[[str], None] = print) -> None:
    """Train the evaluator and write it to `out/evaluator`; resumes from `out/checkpoint.pt`."""
    pictures, records = dataset.load(data)
    torch.manual_seed(plan.seed)
    task = EvaluatorTask(np.array(pictures), records, make_tokenizer(records))
    run(task, plan, out, say)
    if is_main():
        shutil.rmtree(out / "evaluator", ignore_errors=True)  # of the same run, when it was shorter
        export(task, out / "evaluator")


@torch.no_grad()
def export(task: EvaluatorTask, target: Path) -> None:
    """Write the networks for OpenVINO in 16 bits, the tokenizer, and a manifest with sizes and checksums."""
    from openvino import PartialShape, convert_model

    from sfumato.graphs.compress import to_float16
    from sfumato.graphs.ir import save_ir

    image = ImageTower(len(task.styles))
    image.load_state_dict(task.image.state_dict())
    ids = torch.ones(1, TOKENS, dtype=torch.int64)
    with atomic_folder(target) as folder:
        model = convert_model(image.eval(), example_input=torch.zeros(1, 3, SIDE, SIDE))
        model.reshape(PartialShape([-1, 3, SIDE, SIDE]))
        for port, name in zip(model.outputs, OUTPUTS, strict=True):
            port.get_tensor().set_names({name})
        to_float16(model)
        save_ir(model, folder / IMAGE)
        model = convert_model(task.text.eval(), example_input=(ids, ids))
        for port, name in zip(model.inputs, ("ids", "mask"), strict=True):
            port.get_tensor().set_names({name})
        model.reshape({"ids": PartialShape([-1, TOKENS]), "mask": PartialShape([-1, TOKENS])})
        to_float16(model)
        save_ir(model, folder / TEXT)
        task.tokenizer.save(str(folder / TOKENIZER))
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": hash_file(path)}
            for path in sorted(folder.iterdir())
        }
        manifest = {"format": 1, "styles": task.styles, "side": SIDE, "files": files}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
