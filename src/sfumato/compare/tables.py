"""The report's table: a row for each figure, a column for each model."""

from collections.abc import Callable, Iterator
from html import escape

from ..files import human_bytes
from . import wording
from .plots import COLOURS
from .records import Measured, Report

Cell = tuple[str, ...]
"""What is said large, and what is said small below, a line each."""
Row = tuple[str, Callable[[Measured], Cell | None]]

STAGES = {
    "total": "A picture",
    "step": "One step",
    "encode": "Reading the prompt",
    "decode": "Decoding",
    "load": "Loading, cold",
}


def figures(report: Report) -> str:
    """The table; rows that no model has a figure for are left out."""
    head = "".join(_column(place, each, report.reference) for place, each in enumerate(report.models))
    groups = (_group(title, rows, report) for title, rows in _groups(report))
    return f"<table><thead><tr><td></td>{head}</tr></thead>{''.join(groups)}</table>"


def _groups(report: Report) -> Iterator[tuple[str, list[Row]]]:
    components = dict.fromkeys(name for each in report.models for name in each.model.components)
    yield "How it samples", _shortcuts(report)
    yield "On disk", [("Whole model", _disk), *((name, _component(name)) for name in components)]
    yield "Time", [(title, _time(stage)) for stage, title in STAGES.items()]
    yield "Memory", [("At its peak", lambda each: (human_bytes(each.speed.peak_memory_bytes),))]
    yield (
        f"Against {report.reference}",
        [
            ("PSNR", _psnr),
            ("SSIM", _ssim),
            ("Perceptual distance", _distance),
            ("Frechet distance", _frechet),
        ],
    )
    yield "Against the prompts", [("R@1", _recall), ("Style", _style)]


def _shortcuts(report: Report) -> list[Row]:
    """What steps leave to others, where any model's do."""
    rows: list[Row] = []
    if any(each.speed.reuse != "off" for each in report.models):
        rows.append(("Reuse between steps", lambda each: (each.speed.reuse,)))
    if any(each.speed.guidance_every > 1 for each in report.models):
        rows.append(("Negative prompt, one step in", lambda each: (str(each.speed.guidance_every),)))
    return rows


def _group(title: str, rows: list[Row], report: Report) -> str:
    lines = []
    for name, figure in rows:
        cells = [figure(each) for each in report.models]
        if any(cells):
            lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_cell, cells))}</tr>')
    if not lines:
        return ""
    span = len(report.models) + 1
    head = f'<tr class="group"><th colspan="{span}" scope="rowgroup">{escape(title)}</th></tr>'
    return f"<tbody>{head}{''.join(lines)}</tbody>"


def _column(place: int, each: Measured, reference: str) -> str:
    tag = "<em>reference</em>" if each.model.name == reference else ""
    return (
        f'<th scope="col" class="m{place % COLOURS}"><span class="model">{escape(each.model.name)}</span>'
        f"<small>{escape(wording.made_of(each))}</small>{tag}</th>"
    )


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return '<td class="none">–</td>'
    value, *below = map(escape, cell)
    return f"<td>{value}{''.join(f'<small>{line}</small>' for line in below)}</td>"


def _disk(each: Measured) -> Cell:
    return human_bytes(each.model.disk_bytes), *_rate(each.compression.get("total"))


def _rate(rate: float | None) -> Cell:
    return () if rate is None or abs(rate - 1) < 0.005 else (wording.compressed(rate),)


def _component(name: str) -> Callable[[Measured], Cell | None]:
    def cell(each: Measured) -> Cell | None:
        if name not in each.model.components:
            return None
        return human_bytes(each.model.components[name]), *_rate(each.compression.get(name))

    return cell


def _time(stage: str) -> Callable[[Measured], Cell | None]:
    def cell(each: Measured) -> Cell | None:
        timing = each.speed.seconds.get(stage)
        if timing is None:
            return None
        rate = each.speedup.get(stage)
        below = [wording.spread(timing)] if len(timing.runs) > 1 else []
        below += [f"{wording.times(rate)} as fast"] if rate else []
        return wording.seconds(timing.median), *below

    return cell


def _psnr(each: Measured) -> Cell | None:
    if each.fidelity is None:
        return None
    if each.fidelity.psnr is None:
        return "∞", "all pictures are equal"
    return wording.decibels(each.fidelity.psnr), f"worst {wording.decibels(each.fidelity.psnr_worst)}"


def _ssim(each: Measured) -> Cell | None:
    if each.fidelity is None:
        return None
    return f"{each.fidelity.ssim:.3f}", f"worst {each.fidelity.ssim_worst:.3f}"


def _distance(each: Measured) -> Cell | None:
    return (f"{each.fidelity.distance:.4f}",) if each.fidelity else None


def _frechet(each: Measured) -> Cell | None:
    if each.fidelity is None or each.fidelity.frechet is None:
        return None
    return (f"{each.fidelity.frechet:.2f}",)


def _recall(each: Measured) -> Cell | None:
    return (f"{each.recall.r1:.0%}", f"R@5 {each.recall.r5:.0%}") if each.recall else None


def _style(each: Measured) -> Cell | None:
    return (f"{each.recall.style:.0%}",) if each.recall else None
