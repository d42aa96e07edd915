"""Figures as people read them, and a comparison's results as sentences."""

from .records import Fidelity, Measured, Report, Timing

ALIKE = 1.03
"""Ratios nearer to 1 are called equal: runs of one model differ by about as much."""


def seconds(value: float) -> str:
    """`12 ms` below a second, `1.23 s` and `65 s` above, with three digits."""
    if value < 0.9995:
        thousandths = value * 1000
        return f"{thousandths:.{0 if thousandths >= 99.5 else 1}f} ms"
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.5 else 0}f} s"


def spread(timing: Timing) -> str:
    """Its quartiles: `1.20–1.31 s`."""
    low, high = seconds(timing.low), seconds(timing.high)
    if low == high:
        return low
    same_unit = low.split()[1] == high.split()[1]
    return f"{low.split()[0] if same_unit else low}–{high}"


def times(ratio: float) -> str:
    """`1.9×`."""
    return f"{ratio:.2f}×" if ratio < 9.95 else f"{ratio:.0f}×"


def compressed(rate: float) -> str:
    """`1.9× smaller`, or larger."""
    return f"{times(rate)} smaller" if rate >= 1 else f"{times(1 / rate)} larger"


def decibels(value: float | None) -> str:
    """PSNR; no value means that there is no difference."""
    return "∞" if value is None else f"{value:.1f} dB"


def sentences(report: Report) -> list[str]:
    """One sentence for each model but the reference, the fastest first."""
    others = [each for each in report.models if each.model.name != report.reference]
    others.sort(key=lambda each: -each.speedup.get("total", 0))
    return [sentence(each, report.reference) for each in others]


def sentence(measured: Measured, reference: str) -> str:
    """`int8 is 1.9× smaller and 1.6× faster than float; PSNR 31.0 dB, ...`."""
    size, speed = measured.compression.get("total"), measured.speedup.get("total")
    figures = [(size, "smaller", "larger", "as large"), (speed, "faster", "slower", "as fast")]
    relations = [_relation(ratio, *words) for ratio, *words in figures if ratio]
    unlike = [words for words in relations if not words.startswith("as")]
    alike = [words for words in relations if words.startswith("as")]
    parts = [" and ".join(unlike) + f" than {reference}"] if unlike else []
    parts += [" and ".join(alike) + ("" if unlike else f" as {reference}")] if alike else []
    said = f"{measured.model.name} is {' and '.join(parts) or 'measured'}"
    return f"{said}; {_pictures(measured.fidelity)}." if measured.fidelity else f"{said}."


def made_of(measured: Measured) -> str:
    """`sd3, int8`: what kind of model it is, in a few words."""
    model = measured.model
    kind = "PyTorch" if model.kind == "torch" else model.precision
    return ", ".join(dict.fromkeys(part for part in (model.family, kind, model.recipe) if part))


def runs(report: Report) -> str:
    """What was asked of every model."""
    width, height = report.size
    prompts = "1 prompt" if len(report.samples) == 1 else f"{len(report.samples)} prompts"
    return f"{prompts}, {width}×{height}, {report.steps} steps, guidance {report.guidance:g}"


def _relation(ratio: float, more: str, less: str, alike: str) -> str:
    if 1 / ALIKE < ratio < ALIKE:
        return alike
    return f"{times(ratio)} {more}" if ratio > 1 else f"{times(1 / ratio)} {less}"


def _pictures(fidelity: Fidelity) -> str:
    if fidelity.psnr is None:
        return "its pictures are the same to the bit"
    return f"PSNR {decibels(fidelity.psnr)}, SSIM {fidelity.ssim:.3f}"
