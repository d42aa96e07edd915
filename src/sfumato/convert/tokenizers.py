"""Writing a tokenizer for every reader: `tokenizer.json`, Hugging Face files, and OpenVINO GenAI's graph."""

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..graphs.ir import save_ir

KEPT = ("spiece.model", "added_tokens.json")
VOLATILE = ("is_local", "local_files_only", "name_or_path", "processor_class")
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens")


def load_tokenizer(folder: Path, class_name: str) -> Any:
    """The tokenizer of a checkpoint, backed by the `tokenizers` library. Raises CheckpointError."""
    import transformers

    try:
        return getattr(transformers, class_name).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception for damaged files
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: tokenizer cannot be read as {class_name} ({reason})") from error


def export_tokenizer(tokenizer: Any, source: Path, out: Path, max_tokens: int) -> None:
    """Write a tokenizer that cuts at `max_tokens` to the folder `out`.

    OpenVINO GenAI pads the graph's output itself, with the pad token recorded in it.
    """
    from openvino_tokenizers import convert_tokenizer

    out.mkdir(parents=True)
    tokenizer.model_max_length = max_tokens
    core = tokenizer.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    tokenizer.save_pretrained(out)
    core.save(str(out / "tokenizer.json"), pretty=False)  # in less than half of the bytes
    if type(core.model).__name__ == "BPE":
        core.model.save(str(out))
    _write_config(tokenizer, out)
    for name in KEPT:
        if (source / name).is_file() and not (out / name).exists():
            (out / name).write_bytes((source / name).read_bytes())
    model = convert_tokenizer(tokenizer, truncation=True)
    save_ir(model, out / "openvino_tokenizer.xml")


def _write_config(tokenizer: Any, out: Path) -> None:
    path = out / "tokenizer_config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in VOLATILE}
    special = {key: config[key] for key in SPECIAL if config.get(key)}
    for file, value in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        (out / file).write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
