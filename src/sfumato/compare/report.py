"""A comparison as files: `report.json` with its schema, and `report.html`, a page that needs nothing else."""

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from ..files import human_bytes
from . import plots, wording
from .gallery import Difference, amplifications, differences, picture_uris
from .records import Measured, Report, Sample
from .tables import figures

HTML, JSON, SCHEMA = "report.html", "report.json", "report.schema.json"
LARGE_SIDE = 384
"""From this side on, pictures take the page's whole width."""
FEW_MODELS = 3
"""Up to so many, the table leaves room for the plots beside it."""


def write(report: Report, folder: Path) -> None:
    """Write the report beside the pictures that it names, which lie in `folder`."""
    _write(folder / JSON, report.model_dump_json(indent=1) + "\n")
    _write(folder / SCHEMA, json.dumps(Report.model_json_schema(), indent=1) + "\n")
    _write(folder / HTML, page(report, folder))


def page(report: Report, folder: Path) -> str:
    """The whole page; whatever comes from a person or a model is escaped on its way in."""
    sentences = wording.sentences(report)
    return Template(_asset("page.html")).substitute(
        style=_asset("page.css"),
        script=_asset("page.js"),
        title=escape(f"{' · '.join(each.model.name for each in report.models)} – sfumato compare"),
        headline=escape(sentences[0]),
        further="".join(f"<p>{escape(each)}</p>" for each in sentences[1:]),
        asked=escape(wording.runs(report)),
        date=escape(report.environment.date[:10]),
        processor=escape(report.environment.processor),
        figures=figures(report),
        plots="".join(_plots(report)),
        choices="".join(f'<option value="{i}">{escape(n)}</option>' for i, n in enumerate(_names(report))),
        samples="".join(_samples(report, folder)),
        layout=_layout(report),
        notes=_notes(report),
        command=escape(report.command),
        environment=_environment(report),
        runs=report.runs,
        reference=_names(report).index(report.reference),
    )


def _layout(report: Report) -> str:
    """The page's classes: how much room pictures and the table take."""
    size = "large" if max(report.size) >= LARGE_SIDE else "small"
    return f"{size} {'few' if len(report.models) <= FEW_MODELS else 'many'}"


def _plots(report: Report) -> list[str]:
    models = report.models
    longest = max(each.speed.seconds["total"].high for each in models)
    step = max(each.speed.seconds["step"].high for each in models)
    parts = [(each.model.name, _seconds_by_part(each)) for each in models]
    sizes = [(each.model.name, _largest_first(each.model.components)) for each in models]
    colours = {
        name: place for place, name in enumerate(dict.fromkeys(n for _, p in (*sizes, *parts) for n in p))
    }
    steps = [(each.model.name, each.speed.seconds["step"]) for each in models]
    shares = plots.stacked(parts, colours, _unit(longest), "Time of a picture by component")
    found = [
        _figure(
            "Where the time goes",
            "Time inside each network, for one picture.",
            shares,
            _legend(parts, colours),
        ),
        _figure(
            "Where the bytes are",
            "Weights on disk, by component.",
            plots.stacked(sizes, colours, human_bytes, "Bytes on disk by component"),
            _legend(sizes, colours),
        ),
        _figure(
            "How steady a step is",
            "Mean step of each picture; the box holds the middle half, the line is the median.",
            plots.spread(steps, _unit(step), "Time of a sampling step"),
        ),
    ]
    scatter = _quality(report, _unit(longest))
    return [scatter, *found] if scatter else found


def _quality(report: Report, unit: Callable[[float], str]) -> str | None:
    """Nearness to the reference where there is one, else agreement with the prompts, else nothing."""
    by_ssim = {
        place: 1.0 if each.fidelity is None else each.fidelity.ssim
        for place, each in enumerate(report.models)
        if each.fidelity or each.model.name == report.reference
    }
    by_recall = {place: each.recall.r1 for place, each in enumerate(report.models) if each.recall}
    if len(by_ssim) > 1:
        values, label = by_ssim, f"SSIM to {report.reference}"
        said = "Up is nearer to the reference, left is faster."
    elif by_recall:
        values, label, said = by_recall, "R@1", "Up is truer to the prompts, left is faster."
    else:
        return None
    points = [
        plots.Point(
            report.models[place].model.name, report.models[place].speed.seconds["total"], value, place
        )
        for place, value in values.items()
    ]
    return _figure("Quality against time", said, plots.quality(points, label, unit))


def _seconds_by_part(measured: Measured) -> dict[str, float]:
    """Of each component, as far as it is known; else of each stage."""
    speed = measured.speed
    parts = {name: timing.median for name, timing in speed.components.items()}
    return _largest_first(
        parts or {name: speed.seconds[name].median for name in ("encode", "denoise", "decode")}
    )


def _largest_first(parts: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


def _unit(longest: float) -> Callable[[float], str]:
    """One unit for a whole plot."""
    if longest < 1:
        return lambda value: f"{value * 1000:.{0 if longest >= 0.05 else 1}f} ms"
    return lambda value: f"{value:.{2 if longest < 10 else 1}f} s"


def _legend(rows: Sequence[tuple[str, Mapping[str, float]]], colours: Mapping[str, int]) -> str:
    names = dict.fromkeys(name for _, parts in rows for name in parts)
    items = (f'<li class="p{colours[name] % plots.COLOURS}">{escape(name)}</li>' for name in names)
    return f'<ul class="legend">{"".join(items)}</ul>'


def _figure(title: str, said: str, drawing: str, legend: str = "") -> str:
    return f"<figure><h3>{escape(title)}</h3><p>{escape(said)}</p>{drawing}{legend}</figure>"


def _samples(report: Report, folder: Path) -> list[str]:
    names = _names(report)
    amplified = amplifications(report.samples, names, folder)
    uris = picture_uris(report.samples, names, folder)
    return [
        _sample(number, sample, names, pictures, differences(sample, names, folder, amplified))
        for number, (sample, pictures) in enumerate(zip(report.samples, uris, strict=True), 1)
    ]


def _sample(
    number: int, sample: Sample, names: Sequence[str], uris: Sequence[str], maps: Sequence[Difference]
) -> str:
    thumbs = "".join(
        f'<li class="m{place % plots.COLOURS}"><img src="{uri}" data-model="{place}" alt="{escape(name)}">'
        f"<span>{escape(name)}</span></li>"
        for place, (name, uri) in enumerate(zip(names, uris, strict=True))
    )
    negative = f" <small>without {escape(sample.negative)}</small>" if sample.negative else ""
    return Template(_asset("sample.html")).substitute(
        number=number,
        prompt=escape(sample.prompt),
        negative=negative,
        seed=sample.seed,
        thumbs=thumbs,
        maps="".join(_difference(each, names) for each in maps),
    )


def _difference(each: Difference, names: Sequence[str]) -> str:
    shown = escape(f"Where {names[each.first]} and {names[each.second]} differ")
    decibels = "the same to the bit" if each.psnr == float("inf") else f"PSNR {each.psnr:.1f} dB"
    return (
        f'<div data-pair="{each.first}-{each.second}" hidden><img src="{each.uri}" alt="{shown}">'
        f'<p><span class="scale">0 <i></i> {255 // each.amplification}</span> '
        f"difference ×{each.amplification}, {decibels}</p></div>"
    )


def _notes(report: Report) -> str:
    if not report.notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return f'<section id="notes"><h2>To keep in mind</h2><ul>{items}</ul></section>'


def _environment(report: Report) -> str:
    where = report.environment
    rows = {
        "Processor": f"{where.processor}, {where.cores} core{'s' if where.cores > 1 else ''}",
        "Memory": human_bytes(where.memory_bytes),
        "System": where.system,
        "Python": where.python,
        "Packages": ", ".join(f"{name} {version}" for name, version in where.packages.items()),
        "Date": where.date,
    }
    return "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in rows.items())


def _names(report: Report) -> list[str]:
    return [each.model.name for each in report.models]


def _asset(name: str) -> str:
    return files(__package__).joinpath("page", name).read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
