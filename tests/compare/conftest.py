"""A report to draw."""

from collections.abc import Callable
from pathlib import Path

import pytest
import reports

from sfumato.compare.records import Report


@pytest.fixture
def make_report(tmp_path: Path) -> Callable[..., tuple[Report, Path]]:
    """`make_report(names, prompts)`: a report and the folder with its pictures, the later the noisier."""
    return lambda *each, **fields: reports.make_report(tmp_path / "made", *each, **fields)
