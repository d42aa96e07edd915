"""benchmarks/switches.py: a small table made whole, and its plot."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def switches(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import switches

    return switches


def test_from_pictures_to_the_plot(switches, monkeypatch, tmp_path, capsys):
    wanted = ("nothing", "reuse fast", "balanced: 8 bits, reuse balanced, guidance")
    chosen = tuple(switch for switch in switches.SWITCHES if switch.name in wanted)
    monkeypatch.setattr(switches, "SWITCHES", chosen)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("noto red apple\nnoto cat\nnoto house\n")
    given = ["--steps", "8", "--prompts", "3", "--file", str(prompts), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["switches.py", "mini", "mini", *given, "--times", "mini", "mini"])
    switches.main()

    rows = json.loads((tmp_path / "out" / "switches.json").read_text())["rows"]
    assert [row["name"] for row in rows] == list(wanted)
    nothing, fast, balanced = (row["likeness"] for row in rows)
    assert nothing["psnr"] is None
    assert fast["psnr"] < balanced["psnr"] < 60  # fewer key steps, less like the pictures without reuse
    assert fast["distance"] > 0 and 0 <= fast["recall_1"] <= 1
    shown = capsys.readouterr().out
    assert shown.count("\n") == 2 + len(wanted) and "| nothing |" in shown

    root = ElementTree.parse(tmp_path / "out" / "switches.svg").getroot()
    texts = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"reuse fast", "balanced: 8 bits, reuse balanced, guidance"} < texts and "nothing" not in texts
    circles = [element.attrib for element in root.iter() if element.tag.endswith("circle")]
    assert {circle["class"] for circle in circles} == {"alone", "stacked"}
    assert all(0 < float(circle["cx"]) < switches.WIDTH for circle in circles)
    assert all(0 < float(circle["cy"]) < switches.HEIGHT for circle in circles)
