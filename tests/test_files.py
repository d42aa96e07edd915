"""Files and folders that appear complete or not at all."""

import os
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from sfumato.errors import InvalidRequest, SfumatoError
from sfumato.files import (
    ABANDONED,
    atomic_file,
    atomic_folder,
    check_space,
    expanded,
    folder_made,
    remove_abandoned,
    write_errors,
)


def test_home_folders(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/a.png") == Path("/home/me/a.png")
    for path in ("~no-such-user/a.png", "a/~/b", "/a"):
        assert expanded(path) == Path(path)


@pytest.mark.parametrize(
    ("error", "kind", "answer"),
    [
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            SfumatoError,
            "a.bin: no space left on the device",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
            SfumatoError,
            "a.bin: no space left on the device",
        ),
        (
            SafetensorError("I/O error: Permission denied (os error 13)"),
            InvalidRequest,
            r"a.bin: cannot be written \(permission denied\)",
        ),
        (SafetensorError("I/O error: File too large (os error 27)"), SfumatoError, "a.bin: writing failed"),
    ],
)
def test_libraries_that_write_raise_other_errors(error, kind, answer):
    with pytest.raises(SfumatoError, match=answer) as raised, write_errors(Path("a.bin")):
        raise error
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    "error", [ValueError("a"), RuntimeError("b"), SafetensorError("c"), InvalidRequest("b: (os error 28)")]
)
def test_what_is_no_refusal_to_write_stays_what_it_is(error):
    with pytest.raises(type(error)) as raised, write_errors(Path("a.bin")):
        raise error
    assert raised.value is error


def test_only_old_leftovers_are_removed(tmp_path):
    names = ("a.png", ".a.png.partial-old", ".a.png.partial-new", ".a.txt.partial-old")
    for name in names:
        (tmp_path / name).write_bytes(b"half")
        age = ABANDONED - 60 if name.endswith("new") else ABANDONED + 60
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / ".b.png.partial-link").symlink_to("absent")
    remove_abandoned(tmp_path, "*.png")
    assert {path.name for path in tmp_path.iterdir()} == {*names, ".b.png.partial-link"} - {names[1]}


def test_what_a_killed_process_left_is_found_by_the_name_of_its_file(tmp_path):
    with atomic_file(tmp_path / "a.png") as partial:
        os.utime(partial, (0, 0))
        remove_abandoned(tmp_path, "a.png")
        assert not partial.exists()
        partial.write_bytes(b"")


def test_an_empty_folder_may_be_named_by_a_link_or_a_dot(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as partial:
        (partial / "file").write_text("")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with atomic_folder(tmp_path / "here" / ".") as partial:
        (partial / "file").write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "link", "real"]


def test_parents_made_for_nothing_go_again(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "a" / "b" / "c"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with folder_made(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").write_text("")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


def test_a_file_that_exists_is_replaced_whole_or_kept(tmp_path):
    file = tmp_path / "x.png"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(file) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    with atomic_file(file) as partial:
        partial.write_text("new")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_space_is_compared_before_the_work(tmp_path):
    check_space(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(SfumatoError, match=r"there: at least 1000000000\.0 GB are needed and .* are free"):
        check_space(tmp_path / "not" / "yet" / "there", 10**18)


def test_a_name_that_is_too_long_is_bad_input(tmp_path):
    with pytest.raises(InvalidRequest, match="file name too long"), atomic_folder(tmp_path / ("x" * 300)):
        pass
