"""The page and the files of a comparison: complete, alone, and unimpressed by hostile prompts."""

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from sfumato.compare import gallery, plots, wording
from sfumato.compare.records import Fidelity, Report, Timing
from sfumato.compare.report import write

HOSTILE = "</script><img src=x onerror=alert(1)>\"' $title ${style} &amp; <b>"


class Tags(HTMLParser):
    """Every tag with its attributes, and the text outside of scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self._inside = [], "", ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text += data


def written(made):
    report, folder = made
    write(report, folder)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_json_is_the_report(make_report):
    report, folder = make_report()
    write(report, folder)
    assert Report.model_validate_json((folder / "report.json").read_bytes()) == report


def test_schema_names_every_figure(make_report):
    report, folder = make_report()
    write(report, folder)
    schema = json.loads((folder / "report.schema.json").read_text())
    assert set(schema["properties"]) == set(json.loads((folder / "report.json").read_text()))
    assert set(schema["$defs"]["Fidelity"]["properties"]) == set(Fidelity.model_fields)


def test_page_refers_to_nothing_outside(make_report):
    page = Tags(written(make_report(("float", "int8", "int4"))))
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attributes.get(name) or "data:,").startswith("data:")
    assert {tag for tag, _ in page.tags}.isdisjoint({"iframe", "object", "embed", "a", "audio", "video"})


def test_page_allows_nothing_outside(make_report):
    tags = Tags(written(make_report())).tags
    (policy,) = [each["content"] for _, each in tags if each.get("http-equiv") == "Content-Security-Policy"]
    wanted = (
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        "script-src 'unsafe-inline'",
    )
    assert set(wanted) <= {part.strip() for part in policy.split(";")}
    assert "http" not in policy


def test_page_has_no_blank_left(make_report):
    assert not re.search(r"\$\w|\$\{", Tags(written(make_report())).text)


def test_hostile_names_are_text(make_report):
    names = (f"float {HOSTILE}", f"int8 {HOSTILE}")
    report, folder = make_report(names, (HOSTILE,), notes=(HOSTILE,), command=HOSTILE)
    model = report.models[0].model.model_copy(
        update={
            "precision": HOSTILE,
            "recipe": HOSTILE,
            "family": HOSTILE,
            "components": {HOSTILE: 5_000_000},
        }
    )
    speed = report.models[0].speed.model_copy(update={"components": {HOSTILE: Timing.of([0.1, 0.2])}})
    first = report.models[0].model_copy(update={"model": model, "speed": speed})
    where = report.environment.model_copy(update={"processor": HOSTILE, "packages": {HOSTILE: HOSTILE}})
    report = report.model_copy(update={"models": (first, report.models[1]), "environment": where})
    write(report, folder)
    page = Tags((folder / "report.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not any(tag == "img" and each.get("src") == "x" for tag, each in page.tags)
    assert page.text.count(HOSTILE) >= 10


def test_drawings_are_well_formed(make_report):
    page = written(make_report((f"float {HOSTILE}", "int8", "int4")))
    drawings = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(drawings) == 4
    for drawing in drawings:
        assert ElementTree.fromstring(drawing).attrib["role"] == "img"


def test_everything_inside_its_drawing():
    rows = [(f"model {i}", Timing.of([0.01 * (i + 1), 0.011 * (i + 1), 0.3])) for i in range(12)]
    points = [plots.Point(name * 4, timing, 0.5 + 0.04 * i, i) for i, (name, timing) in enumerate(rows)]
    parts = [(name, {"unet": timing.median, "vae": timing.low}) for name, timing in rows]
    for drawing in (
        plots.quality(points, "SSIM", wording.seconds),
        plots.spread(rows, wording.seconds, "Steps"),
        plots.stacked(parts, {"unet": 0, "vae": 1}, wording.seconds, "Time"),
    ):
        root = ElementTree.fromstring(drawing)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for each in root.iter():
            for name in ("x", "x1", "x2", "cx"):
                assert -0.1 <= float(each.get(name, 0)) <= width
            for name in ("y", "y1", "y2", "cy"):
                assert -0.1 <= float(each.get(name, 0)) <= height


def test_a_bar_is_as_long_as_its_sum():
    drawing = plots.stacked([("a", {"x": 3.0, "y": 1.0}), ("b", {"x": 2.0})], {"x": 0, "y": 1}, str, "bars")
    widths = [float(each.get("width")) + 1 for each in ElementTree.fromstring(drawing).iter("rect")]
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.01)
    assert widths[0] + widths[1] == pytest.approx(2 * widths[2], rel=0.01)


def test_without_fidelity_and_recall_there_is_no_plot_of_quality(make_report):
    report, folder = make_report()
    bare = [each.model_copy(update={"fidelity": None, "recall": None}) for each in report.models]
    write(report.model_copy(update={"models": tuple(bare)}), folder)
    page = (folder / "report.html").read_text()
    assert "Quality against time" not in page
    assert "PSNR</th>" not in page


def test_one_prompt_and_steps_that_all_take_as_long(make_report):
    report, folder = make_report(prompts=("noto red apple",))
    even = {name: Timing.of([0.1]) for name in report.models[0].speed.seconds}
    speed = report.models[0].speed.model_copy(update={"seconds": even, "components": {}})
    models = [each.model_copy(update={"speed": speed}) for each in report.models]
    write(report.model_copy(update={"models": tuple(models)}), folder)
    assert "Where the time goes" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("size", "speed", "said"),
    [
        (1.9, 1.6, "int8 is 1.90× smaller and 1.60× faster than float."),
        (1.9, 1.01, "int8 is 1.90× smaller than float and as fast."),
        (1.0, 0.5, "int8 is 2.00× slower than float and as large."),
        (0.5, 0.5, "int8 is 2.00× larger and 2.00× slower than float."),
        (1.0, 1.0, "int8 is as large and as fast as float."),
    ],
)
def test_headline(make_report, size, speed, said):
    report, _ = make_report()
    measured = report.models[1].model_copy(
        update={"compression": {"total": size}, "speedup": {"total": speed}, "fidelity": None}
    )
    assert wording.sentence(measured, "float") == said


def test_headline_says_how_near_the_pictures_are(make_report):
    report, folder = make_report()
    assert "PSNR 31.0 dB" in wording.sentence(report.models[1], "float")
    equal = Fidelity(psnr=None, psnr_worst=None, ssim=1, ssim_worst=1, distance=0)
    same = report.models[1].model_copy(update={"fidelity": equal})
    assert "the same to the bit" in wording.sentence(same, "float")
    assert wording.sentences(report)[0] in written((report, folder))


def test_the_fastest_comes_first(make_report):
    report, _ = make_report(("float", "int8", "int4"))
    assert [said.split()[0] for said in wording.sentences(report)] == ["int4", "int8"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0021, "2.1 ms"), (0.25, "250 ms"), (0.99951, "1.00 s"), (1.234, "1.23 s"), (65, "65.0 s")],
)
def test_seconds(seconds, said):
    assert wording.seconds(seconds) == said


def test_pictures_are_embedded_as_they_are(make_report):
    from base64 import b64decode
    from io import BytesIO

    report, folder = make_report()
    uris = gallery.picture_uris(report.samples, ["float", "int8"], folder)
    data = b64decode(uris[1][1].partition(",")[2])
    with Image.open(BytesIO(data)) as embedded, Image.open(folder / "pictures/1-1.png") as written:
        assert np.array_equal(np.asarray(embedded), np.asarray(written))


def test_many_large_pictures_take_less_room(make_report, monkeypatch):
    report, folder = make_report()
    names = ["float", "int8"]
    exact = gallery.picture_uris(report.samples, names, folder)
    monkeypatch.setattr(gallery, "LOSSLESS_PIXELS", 10)
    assert len(gallery.picture_uris(report.samples, names, folder)[1][1]) < len(exact[1][1]) / 2


def test_difference_maps_come_from_the_pictures(make_report):
    report, folder = make_report(("float", "int8", "int4"))
    names = ["float", "int8", "int4"]
    amplified = gallery.amplifications(report.samples, names, folder)
    assert amplified[0, 1] == 2 * amplified[0, 2] == 32
    found = gallery.differences(report.samples[0], names, folder, amplified)
    assert [(each.first, each.second) for each in found] == [(0, 1), (0, 2), (1, 2)]
    assert found[0].psnr > found[1].psnr


def test_equal_is_black_and_most_is_pale():
    shades = gallery.shade(np.arange(256, dtype=np.uint8)).astype(int)
    assert shades[0].max() < 20
    assert shades[255].min() > 200
    assert (np.diff(shades.sum(-1)) >= 0).all()
