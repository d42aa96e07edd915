"""Pictures on disk: written whole, with the text that other tools read; and that text read back."""

import logging
import struct
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sfumato.artifact import embedded_models, load_artifact
from sfumato.errors import InvalidRequest
from sfumato.runtime.build import build_request
from sfumato.runtime.parameters import (
    MAX_TEXT,
    NEGATIVE,
    SETTING,
    Models,
    Parameters,
    described,
    parameters_text,
    parse_parameters,
    parse_size,
    settings,
)
from sfumato.runtime.png import read_parameters, save_png

SETTINGS = {
    "Steps": 20,
    "Sampler": "flow-euler",
    "CFG scale": 4.5,
    "Seed": 7,
    "Size": "128x96",
    "Clip skip": None,
    "Model": "mini",
    "Version": "sfumato 0.1.0",
}
LINE = (
    "Steps: 20, Sampler: flow-euler, CFG scale: 4.5, Seed: 7, Size: 128x96, "
    "Model: mini, Version: sfumato 0.1.0"
)
WEB_UI = """\
masterpiece, (red apple:1.2), <lora:fruit:0.8>
second line: with a colon, "quotes" BREAK
Negative prompt: blurry, (worst quality:1.4)
and: more of it
Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 3920142563, Size: 832x1216, \
Model hash: 67ab2fd8ec, Model: ponyXL_v6, Clip skip: 2, Denoising strength: 0.35, ADetailer model: face.pt, \
Lora hashes: "fruit: 1a2b3c, other: 4d5e6f", TI hashes: "easy, \\"neg\\": ab", Version: v1.9.4"""


def test_parameters_block():
    assert parameters_text("a cat", "a dog", SETTINGS) == f"a cat\nNegative prompt: a dog\n{LINE}"
    assert parameters_text("a cat", None, SETTINGS) == f"a cat\n{LINE}"


def test_names_with_separators_are_quoted():
    assert 'Model: "mini, mine", Version' in parameters_text("", None, SETTINGS | {"Model": "mini, mine"})


def test_text_of_the_web_ui():
    read = parse_parameters(WEB_UI)
    prompt, negative = WEB_UI.split("\nNegative prompt: ")
    assert read.prompt == prompt
    assert read.negative_prompt == "\n".join(negative.split("\n")[:2])
    assert list(read.settings)[:3] == ["Steps", "Sampler", "Schedule type"]
    assert read.settings["Lora hashes"] == "fruit: 1a2b3c, other: 4d5e6f"
    assert read.settings["TI hashes"] == 'easy, "neg": ab'
    assert read.settings["Version"] == "v1.9.4"
    assert settings(read) == {
        "steps": 28,
        "guidance": 6.5,
        "seed": 3920142563,
        "size": (832, 1216),
        "strength": 0.35,
        "clip_skip": 1,
        "sampler": "dpmpp-2m-karras",
    }


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Sampler: Euler a", {"sampler": "euler-ancestral"}),
        ("Sampler: Euler, Schedule type: Automatic", {"sampler": "euler"}),
        ("Sampler: Euler, Schedule type: Beta", {"sampler": "euler", "spacing": "beta"}),
        ("Sampler: UniPC, Schedule type: Align Your Steps", {"sampler": "unipc", "spacing": "ays"}),
        ("Sampler: DPM++ 2M Karras", {"sampler": "dpmpp-2m-karras"}),
        ("Sampler: DPM++ 2M", {"sampler": "dpmpp-2m"}),
        ("Sampler: DDIM, Clip skip: 1", {"sampler": "ddim"}),
        ("Sampler: LCM", {"sampler": "lcm"}),
        ("Sampler: flow-euler, Schedule type: karras", {"sampler": "flow-euler", "spacing": "karras"}),
    ],
)
def test_samplers_of_other_names(line, expected, caplog):
    read = parse_parameters(f"x\nSteps: 2, Seed: 1, CFG scale: 7, {line}")
    assert settings(read) == {"steps": 2, "seed": 1, "guidance": 7} | expected
    assert caplog.text == ""


def test_what_does_not_exist_here_is_left_out_aloud(caplog):
    line = "Steps: many, Sampler: DPM++ SDE, Schedule type: Turbo, Size: big, Seed: 5"
    with caplog.at_level(logging.WARNING, "sfumato"):
        assert settings(parse_parameters(f"x\n{line}")) == {"seed": 5}
    for value in ("'many'", "'DPM++ SDE'", "'Turbo'", "'big'"):
        assert value in caplog.text


def test_text_without_settings_is_a_prompt():
    assert parse_parameters("a: b\nc, d: e") == Parameters("a: b\nc, d: e")
    assert parse_parameters("Negative prompt: x") == Parameters("", "x")
    assert parse_parameters("") == Parameters("")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
prompts = texts.filter(lambda text: not any(line.startswith(NEGATIVE) for line in text.split("\n")))


@given(prompts, st.none() | texts, texts)
def test_round_trip(prompt, negative, model):
    text = parameters_text(prompt, negative, SETTINGS | {"Model": model})
    read = parse_parameters(text)
    assert (read.prompt, read.negative_prompt) == (prompt, negative)
    expected = SETTINGS | {"Model": model}
    assert read.settings == {key: str(value) for key, value in expected.items() if value is not None}


@pytest.mark.parametrize("negative", ["b\nc", "", None])
def test_a_request_comes_back_from_its_picture(tmp_path, negative):
    manifest = load_artifact(embedded_models()["mini"]).manifest
    given = {"negative_prompt": negative, "steps": 3, "guidance": 2.5, "size": (64, 128), "seed": 9}
    request = build_request(manifest, "a, b: c\nd", given)
    save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", described(request, 0, Models(manifest.name)))
    read = read_parameters(tmp_path / "a.png")
    again = settings(read) | {"negative_prompt": read.negative_prompt}
    assert build_request(manifest, read.prompt, again) == request


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("extension", ["jpg", "webp"])
def test_comment_of_other_formats(tmp_path, extension, order):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + WEB_UI.replace("apple", "æpple ✓").encode(order)
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{extension}", exif=exif)
    read = read_parameters(tmp_path / f"a.{extension}")
    assert "(red æpple ✓:1.2)" in read.prompt
    assert settings(read)["seed"] == 3920142563


def test_text_after_the_pixels(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    plain = (tmp_path / "a.png").read_bytes()
    text = b"tEXtparameters\0" + WEB_UI.encode("latin-1")
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    (tmp_path / "a.png").write_bytes(plain[:-12] + chunk + plain[-12:])
    assert settings(read_parameters(tmp_path / "a.png"))["steps"] == 28


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "gif"])
def test_pictures_that_say_nothing(tmp_path, extension):
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{extension}")
    with pytest.raises(InvalidRequest, match=rf"a.{extension}: does not say how it was made"):
        read_parameters(tmp_path / f"a.{extension}")


def test_what_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_text("parameters")
    for name in ("a.png", "absent.png"):
        with pytest.raises(InvalidRequest, match=name):
            read_parameters(tmp_path / name)


UNITS = ("a", " ", "a ", "\n", "a:", "a,", 'a: "', 'a: "\\', 'a:"\\",', '"', "_a", f"{NEGATIVE}\n")


@pytest.mark.parametrize("unit", UNITS)
def test_hostile_texts_take_no_time(unit):
    started = time.process_time()
    parse_parameters((unit * MAX_TEXT)[:MAX_TEXT])
    assert time.process_time() - started < 1


def test_names_of_settings_begin_with_a_word():
    """Were each character of a word a possible beginning, long words would take a hundred times as long."""
    assert SETTING.findall("a" * 100 + ": x, _b: y") == [("a" * 100, "x"), ("b", "y")]
    assert SETTING.findall("a" * 101 + ": x") == []


def test_longer_texts_are_refused(tmp_path):
    longest = WEB_UI.rjust(MAX_TEXT, "\n")
    save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", longest)
    assert settings(read_parameters(tmp_path / "a.png"))["steps"] == 28
    save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", longest + "x")
    with pytest.raises(InvalidRequest, match=r"a.png: .*has 100001 characters, and at most 100000"):
        read_parameters(tmp_path / "a.png")


def test_a_home_folder_that_nobody_has():
    with pytest.raises(InvalidRequest, match=r"~no-such-user/a.png: no such file"):
        read_parameters("~no-such-user/a.png")


def test_sizes():
    for text in ("64x32", "64X32", "64×32", " 64 x 32 "):
        assert parse_size(text) == (64, 32)
    for text in (
        "",
        "big",
        "64",
        "64x",
        "64x32x1",
        "0x64",
        "-1x64",
        "6_4x32",
        "٣x٣",
        "1.5x2",
        "9" * 5000 + "x1",
    ):
        with pytest.raises(ValueError, match="write WIDTHxHEIGHT"):
            parse_size(text)


def test_where_a_refiner_takes_over():
    manifest = load_artifact(embedded_models()["mini"]).manifest
    for switch_at in (None, 0.7):
        request = build_request(manifest, "a", {"seed": 1, "switch_at": switch_at})
        carried = parse_parameters(described(request, 0, Models("a", "b")))
        assert carried.settings["Refiner"] == "b"
        assert settings(carried).get("switch_at") == switch_at


def test_picture_and_text_survive(tmp_path):
    image = Image.new("RGB", (16, 8), (200, 10, 30))
    save_png(image, tmp_path / "a.png", "a çat ✓\nSteps: 1")
    with Image.open(tmp_path / "a.png") as read:
        assert read.text == {"parameters": "a çat ✓\nSteps: 1"}
        assert read.tobytes() == image.tobytes()
    save_png(image, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as read:
        assert read.text == {}
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_further_texts(tmp_path):
    save_png(Image.new("RGB", (16, 8)), tmp_path / "a.png", "x", {"made by": "hand"})
    with Image.open(tmp_path / "a.png") as read:
        assert read.text == {"parameters": "x", "made by": "hand"}


def test_failed_writing_keeps_the_old_picture(tmp_path, monkeypatch):
    image = Image.new("RGB", (16, 8))
    save_png(image, tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def stopped(self, partial, **options):
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        save_png(image, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_absent_folder_is_named(tmp_path):
    with pytest.raises(InvalidRequest, match=r"absent/a.png: cannot be written"):
        save_png(Image.new("RGB", (16, 8)), tmp_path / "absent" / "a.png")
