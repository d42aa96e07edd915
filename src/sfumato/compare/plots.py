"""The report's plots: small SVG drawn here, so that the page needs nothing from elsewhere.

Colours are the page's: classes m0, m1, ... for models and p0, p1, ... for components.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

from .records import Timing

WIDTH = 440
LETTER = 7.0
"""About the width of a letter at the size of labels, in the plots' units."""
COLOURS = 8


@dataclass(frozen=True)
class Point:
    """A model in `quality`: seconds a picture, a figure of quality, its place among all (for the colour)."""

    name: str
    time: Timing
    quality: float
    colour: int


@dataclass(frozen=True)
class Axis:
    """From values to positions; `start` and `end` are the positions of `low` and `high`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        """Round numbers on the axis, about `count` of them."""
        rough = (self.high - self.low) / count
        power = 10 ** floor(log10(rough))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
        first = -(-self.low // step)
        values = [(first + index) * step for index in range(3 * count)]
        return [value for value in values if value <= self.high + step * 1e-6]


def quality(points: Sequence[Point], label: str, unit: Callable[[float], str]) -> str:
    """Quality (0..1) upwards against the time of a picture, with quartiles: up and to the left is better."""
    height, left, bottom = 280, 52, 236
    time = Axis(0, max(point.time.high for point in points) * 1.12 or 1, left, WIDTH - 16)
    values = [point.quality for point in points]
    margin = max((max(values) - min(values)) * 0.25, 0.02)
    value = Axis(min(values) - margin, max(values) + margin / 2, bottom, 20)
    parts = []
    ticks = [tick for tick in value.ticks() if 0 <= tick <= 1.0001]
    digits = max(2, len(f"{ticks[1] - ticks[0]:.4f}".rstrip("0")) - 2) if len(ticks) > 1 else 2
    for tick in ticks:
        y = value(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - 16}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 8, y + 4, f"{tick:.{digits}f}", "tick end"))
    parts += _time_axis(time, bottom, unit)
    parts.append(_text(WIDTH - 16, height - 6, "time of a picture, median and quartiles", "tick end"))
    parts.append(_text(0, 10, label, "tick"))
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda each: -each.quality):
        x, y = time(point.time.median), value(point.quality)
        whisker = (
            f'x1="{time(point.time.low):.1f}" x2="{time(point.time.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"'
        )
        parts.append(
            f'<g class="m{point.colour % COLOURS}"><line class="whisker" {whisker}/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6.5"/></g>'
        )
        parts.append(_label(point.name, time(point.time.low), time(point.time.high), y, bottom, taken))
    return _svg(height, f"{label} against seconds a picture", parts)


def stacked(
    rows: Sequence[tuple[str, Mapping[str, float]]],
    colours: Mapping[str, int],
    unit: Callable[[float], str],
    title: str,
) -> str:
    """A bar a row, with its parts in their colours, their shares inside and the sum at the end."""
    longest = max((sum(parts.values()) for _, parts in rows), default=0) or 1
    scale = Axis(0, longest, 0, WIDTH - 84)
    parts = []
    for place, (name, values) in enumerate(rows):
        top, x, total = place * 58 + 20, 0.0, sum(values.values())
        parts.append(_text(0, top - 6, _short(name, 56), "name"))
        for part, value in values.items():
            width = scale(value)
            share = value / total if total else 0
            said = f"{part}: {unit(value)}, {share:.0%} of {name}"
            parts.append(
                f'<g class="p{colours[part] % COLOURS}"><title>{escape(said)}</title>'
                f'<rect x="{x:.1f}" y="{top}" width="{max(width - 1, 0.5):.1f}" height="26" rx="2"/>'
                + (_text(x + width / 2, top + 17.5, f"{share:.0%}", "share") if width > 34 else "")
                + "</g>"
            )
            x += width
        parts.append(_text(x + 7, top + 17.5, unit(total), "tick"))
    return _svg(len(rows) * 58 - 2, title, parts)


def spread(rows: Sequence[tuple[str, Timing]], unit: Callable[[float], str], title: str) -> str:
    """Every run as a dot, with the quartiles as a box and the median as a line."""
    values = [value for _, timing in rows for value in timing.runs]
    margin = (max(values) - min(values)) * 0.06 or max(values) * 0.05 or 1
    time = Axis(max(0, min(values) - margin), max(values) + margin, 8, WIDTH - 16)
    bottom = len(rows) * 58 + 4
    parts = _time_axis(time, bottom, unit)
    for place, (name, timing) in enumerate(rows):
        top = place * 58 + 20
        low, middle, high = time(timing.low), time(timing.median), time(timing.high)
        dots = "".join(
            f'<circle class="run" cx="{time(value):.1f}" cy="{top + 5 + index * 7 % 17}" r="2.2"/>'
            for index, value in enumerate(_thinned(timing.runs))
        )
        box = f'x="{low:.1f}" y="{top}" width="{max(high - low, 1):.1f}" height="26" rx="3"'
        parts.append(_text(0, top - 6, _short(name, 36), "name"))
        parts.append(_text(WIDTH - 16, top - 6, unit(timing.median), "tick end"))
        parts.append(
            f'<g class="m{place % COLOURS}"><rect class="box" {box}/>{dots}'
            f'<line class="median" x1="{middle:.1f}" x2="{middle:.1f}" y1="{top - 2}" y2="{top + 28}"/></g>'
        )
    return _svg(bottom + 24, title, parts)


def _time_axis(axis: Axis, bottom: float, unit: Callable[[float], str]) -> list[str]:
    parts = [f'<line class="axis" x1="{axis.start}" x2="{axis.end}" y1="{bottom}" y2="{bottom}"/>']
    for tick in axis.ticks():
        x = axis(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(_text(x, bottom + 18, unit(tick) if tick else "0", "tick middle"))
    return parts


def _label(
    name: str, low: float, high: float, y: float, bottom: float, taken: list[tuple[float, float, float]]
) -> str:
    """A point's name beside its whisker where there is room, as near to its height as the others let it."""
    name = _short(name, 26)
    width = len(name) * LETTER
    right = high + 12 + width < WIDTH
    begin = high + 12 if right else low - 12 - width

    def free(place: float) -> bool:
        beside = [other for start, end, other in taken if begin < end and start < begin + width]
        return 20 < place < bottom and all(abs(place - other) >= 15 for other in beside)

    shifts = (sign * step for step in range(0, int(bottom), 5) for sign in (1, -1))
    place = next((y + 4 + shift for shift in shifts if free(y + 4 + shift)), y + 4)
    taken.append((begin, begin + width, place))
    return _text(high + 12 if right else low - 12, place, name, "name" if right else "name end")


def _thinned(values: Sequence[float], most: int = 150) -> Sequence[float]:
    return values[:: -(-len(values) // most)]


def _short(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
