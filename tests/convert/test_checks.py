"""Sources and targets that a conversion refuses before it loads anything."""

from pathlib import Path

import pytest

from sfumato.convert.checks import check_source, check_target
from sfumato.errors import CheckpointError, InvalidRequest


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.pth", "x.bin", "x.pkl", "X.CKPT"])
def test_pickles_are_refused_with_the_reason_and_the_way_out(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(
        CheckpointError, match=rf"{name}: a pickle.*run any code.*safetensors.*from_single_file"
    ):
        check_source(tmp_path / name)


def test_single_files_are_checkpoints(tmp_path):
    file = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match="no such file or folder"):
        check_source(file)
    file.write_bytes(b"")
    assert check_source(file) is None


@pytest.mark.parametrize("source", ["org/model-1.5", "https://huggingface.co/org/model"])
def test_hub_ids_are_told_from_paths(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub_id = check_source(source)
    assert hub_id is not None and hub_id.repo.startswith("org/model")
    (tmp_path / "org/model-1.5").mkdir(parents=True)
    assert check_source("org/model-1.5") is None


@pytest.mark.parametrize("source", ["model", "../org/model", "/org/model", "a/b/c"])
def test_other_names_are_plain_paths(source):
    with pytest.raises(CheckpointError, match="no such file or folder; give a checkpoint"):
        check_source(Path(source))


def test_a_folder_wins_over_what_its_name_looks_like(tmp_path):
    (tmp_path / "v1.ckpt").mkdir()
    check_source(tmp_path / "v1.ckpt")


def test_other_files_and_converted_models(tmp_path):
    (tmp_path / "sfumato.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no checkpoint; give a folder"):
        check_source(tmp_path / "sfumato.json")
    with pytest.raises(CheckpointError, match="a converted model already"):
        check_source(tmp_path)


def test_names_that_the_system_refuses():
    with pytest.raises(CheckpointError, match="File name too long"):
        check_source(Path("x" * 300))
    with pytest.raises(InvalidRequest, match="file name too long"):
        check_target(Path("x" * 300))


def test_nothing_that_exists_is_replaced(tmp_path):
    check_target(tmp_path)
    check_target(tmp_path / "new")
    (tmp_path / "sfumato.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="holds a model already"):
        check_target(tmp_path)
    with pytest.raises(InvalidRequest, match="exists already"):
        check_target(tmp_path / "sfumato.json")
    with pytest.raises(InvalidRequest, match="mount point"):
        check_target(_empty_mount())


def _empty_mount() -> Path:
    lines = Path("/proc/self/mounts").read_text().splitlines() if Path("/proc/self/mounts").exists() else []
    for mount in (Path(line.split()[1]) for line in lines):
        try:
            if mount.is_dir() and not any(mount.iterdir()):
                return mount
        except OSError:
            continue
    pytest.skip("no empty mount point here")
