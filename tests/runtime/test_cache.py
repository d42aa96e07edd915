"""The cache of compiled networks: whole entries or none, and no more than fits."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from sfumato.runtime import cache

KEYS = [f"{number:032x}" for number in range(5)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_written_is_read(folder):
    assert cache.read(KEYS[0]) is None
    cache.write(KEYS[0], b"network")
    assert bytes(cache.read(KEYS[0])) == b"network"
    assert cache.read(KEYS[1]) is None
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    "damage", [lambda entry: entry[:-1], lambda entry: b"x" + entry[1:], lambda entry: b""]
)
def test_damaged_entry_is_none(folder, damage):
    cache.write(KEYS[0], b"network")
    (entry,) = folder.iterdir()
    entry.write_bytes(damage(entry.read_bytes()))
    assert cache.read(KEYS[0]) is None


def test_least_recently_used_entries_make_room(folder, monkeypatch):
    monkeypatch.setattr(cache, "LIMIT", 3 * 150)
    for age, key in enumerate(KEYS[:3]):
        cache.write(key, bytes(100))
        os.utime(folder / f"{key}.blob", (1000 + age, 1000 + age))
    cache.read(KEYS[0])
    cache.write(KEYS[3], bytes(100))
    assert {path.stem for path in folder.iterdir()} == {KEYS[0], KEYS[2], KEYS[3]}


def test_only_its_own_files_are_removed(folder, monkeypatch):
    monkeypatch.setattr(cache, "LIMIT", 0)
    folder.mkdir()
    (folder / "holiday.blob").write_bytes(bytes(100))
    cache.write(KEYS[0], bytes(100))
    assert [path.name for path in folder.iterdir()] == ["holiday.blob"]


def test_what_a_killed_process_left_is_removed_after_a_day(folder):
    folder.mkdir()
    old, new = (folder / f".{KEYS[0]}.blob.partial-{name}" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"part")
    os.utime(old, (time.time() - 90_000,) * 2)
    cache.write(KEYS[1], b"network")
    assert not old.exists()
    assert new.exists()


def test_processes_that_write_the_same_entry_leave_it_whole(folder):
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_often, args=(fill,)) for fill in b"ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = cache.read(KEYS[0])
        assert found is None or bytes(found) in (b"a" * 10**6, b"b" * 10**6)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert cache.read(KEYS[0]) is not None
    assert len(list(folder.iterdir())) == 1


def write_often(fill: int) -> None:
    for _ in range(20):
        cache.write(KEYS[0], bytes([fill]) * 10**6)
