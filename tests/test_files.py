"""Files and folders that appear complete or not at all."""

import pytest

from sfumato.errors import InvalidRequest, SfumatoError
from sfumato.files import atomic_file, atomic_folder, check_space, folder_made


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
