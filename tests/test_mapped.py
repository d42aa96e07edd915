"""Pages of mapped files go back to the system, and their content stays what it is."""

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from sfumato.mapped import SMALL, kept_small, let_go

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux gives pages back")
SIZE = 32 * 2**20


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "weights.bin"
    np.arange(SIZE // 4, dtype=np.int32).tofile(path)
    return path


def resident(path: Path) -> int:
    """Bytes of a mapped file that this process holds."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    total = 0
    for line in lines:
        if line.endswith(str(path)):
            total += next(int(each.split()[1]) * 1024 for each in lines if each.startswith("Rss:"))
    return total


def test_read_pages_go_and_come_again(file):
    with file.open("rb") as opened:
        values = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.int32)
    total = values.sum(dtype=np.int64)
    assert resident(file) == SIZE
    let_go([file])
    assert resident(file) == 0
    assert values.sum(dtype=np.int64) == total


def test_pages_that_can_be_written_to_stay(file):
    with file.open("rb") as opened:
        values = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY), np.int32)
    values[:] = 7
    let_go([file])
    assert (values == 7).all()


def test_nothing_is_left_after_the_block_also_when_it_fails(file):
    with file.open("rb") as opened:
        values = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.int32)
    with pytest.raises(RuntimeError), kept_small([file]):
        values.sum()
        raise RuntimeError
    assert resident(file) == 0


def test_small_files_keep_their_pages(file):
    with file.open("r+b") as opened:
        opened.truncate(SMALL - 4)
        values = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.int32)
    values.sum()
    let_go([file])
    assert resident(file) == SMALL


def test_files_that_are_not_mapped_are_no_error(tmp_path):
    let_go([tmp_path / "missing"])
