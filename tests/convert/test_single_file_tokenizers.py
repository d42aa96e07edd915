"""Where the tokenizers of single files come from: folders, open_clip's vocabulary, or the Hub."""

import gzip
import importlib.util
import json
import sys

import originals
import pytest
from huggingface_hub import constants

import tiny
from sfumato.convert import hub
from sfumato.convert.single_file import open_single_file, tokenizers
from sfumato.convert.single_file.kinds import CLIP_G, CLIP_L, T5
from sfumato.convert.single_file.tokenizers import tokenizer_files
from sfumato.convert.tokenizers import load_tokenizer
from sfumato.errors import CheckpointError

WITHOUT = "model.safetensors"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def no_open_clip(monkeypatch):
    monkeypatch.setattr(tokenizers.importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def open_clip(tmp_path, monkeypatch):
    """An installed open_clip whose vocabulary knows one word, and which fails when it is imported."""
    package = tmp_path / "site/open_clip"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    merges = ["#version", "c a", "ca t</w>"]
    (package / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress("\n".join(merges).encode()))
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)


@pytest.mark.parametrize(("encoder", "pad"), [(CLIP_L, "<|endoftext|>"), (CLIP_G, "!")])
def test_a_vocabulary_that_is_installed(encoder, pad, open_clip, tmp_path):
    for _ in range(2):  # made, then found
        files = tokenizer_files(tmp_path / WITHOUT, encoder, None)
        tokenizer = load_tokenizer(files.folder, files.class_name)
        assert tokenizer.pad_token == pad
        assert tokenizer.model_max_length == 77
        assert len(tokenizer) == 512 + 2 + 2
        assert tokenizer("Cat").input_ids == [514, 513, 515]
    assert tokenizer.convert_tokens_to_ids("!") == 0


@pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip is not installed")
def test_clips_own_ids(tmp_path):
    files = tokenizer_files(tmp_path / WITHOUT, CLIP_L, None)
    tokenizer = load_tokenizer(files.folder, files.class_name)
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_folders_go_first(no_open_clip, tmp_path):
    given, beside = tmp_path / "given", tmp_path / "beside"
    tiny.clip_tokenizer(tmp_path).save_pretrained(beside / "tokenizer")
    tiny.clip_tokenizer(tmp_path, pad="!").save_pretrained(beside / "tokenizer_2")
    tiny.clip_tokenizer(tmp_path).save_pretrained(given / "tokenizer")
    tiny.t5_tokenizer().save_pretrained(given / "tokenizer_3")
    file = beside / WITHOUT
    assert tokenizer_files(file, CLIP_L, given).folder == given / "tokenizer"
    assert tokenizer_files(file, CLIP_L, None).folder == beside / "tokenizer"
    assert tokenizer_files(file, CLIP_G, given).folder == beside / "tokenizer_2"
    found = tokenizer_files(file, T5, given)
    assert found.folder == given / "tokenizer_3"
    assert load_tokenizer(found.folder, found.class_name)("a cat").input_ids[-1] == 1


def test_code_beside_a_file_is_refused(no_open_clip, tmp_path):
    tiny.clip_tokenizer(tmp_path).save_pretrained(tmp_path / "tokenizer")
    config = tmp_path / "tokenizer/tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoTokenizer": "evil"}}))
    with pytest.raises(CheckpointError, match="auto_map"):
        tokenizer_files(tmp_path / WITHOUT, CLIP_L, None)


def test_downloads(no_open_clip, tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshot"
    tiny.clip_tokenizer(tmp_path).save_pretrained(snapshot)
    core = json.loads((snapshot / "tokenizer.json").read_text())["model"]
    (snapshot / "vocab.json").write_text(json.dumps(core["vocab"]))
    merges = (each if isinstance(each, str) else " ".join(each) for each in core["merges"])
    (snapshot / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    asked = []

    def fetch(source):
        asked.append(str(source))
        return snapshot / source.file

    monkeypatch.setattr(hub, "fetch", fetch)
    files = tokenizer_files(tmp_path / WITHOUT, CLIP_G, None)
    assert load_tokenizer(files.folder, files.class_name).pad_token == "!"
    assert asked == [f"openai/clip-vit-large-patch14/{name}" for name in ("vocab.json", "merges.txt")]
    assert tokenizer_files(tmp_path / WITHOUT, T5, None).folder == snapshot
    assert asked[2:] == [f"google-t5/t5-small/{name}" for name in ("tokenizer.json", "tokenizer_config.json")]


@pytest.mark.parametrize(("encoder", "folder"), [(CLIP_L, "tokenizer"), (T5, "tokenizer_3")])
def test_offline_the_way_out_is_named(encoder, folder, no_open_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError) as caught:
        tokenizer_files(tmp_path / WITHOUT, encoder, None)
    assert f"give a folder that has {folder}/ with --tokenizers" in str(caught.value)
    assert "HF_HUB_OFFLINE" in str(caught.value)
    assert not list(tmp_path.glob("cache/**/*.json"))


def test_a_folder_without_tokenizers(tmp_path):
    shapes = originals.unet(32, (1, 2), (1, 0), 64, linear=False, layers=1)
    file = originals.write_hollow(tmp_path / WITHOUT, shapes)
    with pytest.raises(CheckpointError, match="no tokenizers; give a folder in diffusers layout"):
        open_single_file(file, tokenizers=tmp_path)
