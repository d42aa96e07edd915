"""Pictures from strangers: read rightly or refused in one line; masks, canvases and sizes."""

import io
import logging
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sfumato.errors import InvalidRequest
from sfumato.manifest import LatentSpace
from sfumato.runtime import values
from sfumato.runtime.pictures import (
    compose,
    expand,
    fit,
    fit_mask,
    latent_mask,
    open_mask,
    open_picture,
    parse_borders,
    picture_size,
    repainted,
    to_array,
)

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)
SPACE = LatentSpace(channels=4, factor=8, scale=0.18215, size_multiple=8, default_size=(512, 512))
MOST = 1024 * 1024


def gradient(width: int = 24, height: int = 16) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 10, columns * 10, rows + columns], -1).astype(np.uint8)


@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "gif", "webp", "jpg"])
def test_formats(tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    Image.new("RGB", (20, 10), RED).save(path, lossless=True)
    picture = open_picture(path)
    assert (picture.mode, picture.size) == ("RGB", (20, 10))
    np.testing.assert_allclose(np.asarray(picture), np.full((10, 20, 3), RED), atol=2)
    assert open_picture(str(path)).tobytes() == open_picture(Image.open(path)).tobytes() == picture.tobytes()


def test_other_formats_are_not_even_tried(tmp_path):
    Image.new("RGB", (20, 10), RED).save(tmp_path / "a.ppm")
    with pytest.raises(InvalidRequest, match=r"a.ppm: is no picture.*PNG"):
        open_picture(tmp_path / "a.ppm")


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("1", (2, 2), 1), WHITE),
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("RGB", (2, 2), RED).convert("P"), RED),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), RED),
        (Image.new("LA", (2, 2), (0, 0)), WHITE),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), WHITE),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 51)), (255, 204, 204)),
        (Image.fromarray(np.full((2, 2), 65535, np.uint16)), WHITE),
        (Image.fromarray(np.full((2, 2), 77 * 257, np.uint16)), (77, 77, 77)),
        (Image.fromarray(np.full((2, 2), 77 * 257, np.uint16).astype(">u2")), (77, 77, 77)),
        (Image.fromarray(np.full((2, 2), 77 * 257, np.int32)), (77, 77, 77)),
        (Image.fromarray(np.full((2, 2), 0.2, np.float32)), (51, 51, 51)),
    ],
)
@pytest.mark.parametrize("extension", [None, "tiff"])
def test_every_kind_of_pixel(tmp_path, picture, expected, extension):
    if extension:
        picture.save(tmp_path / f"a.{extension}")
    got = open_picture(tmp_path / f"a.{extension}" if extension else picture)
    assert (got.mode, got.getpixel((0, 0))) == ("RGB", expected)


def test_16_bit_and_transparent_png(tmp_path):
    Image.fromarray(np.full((2, 2), 77 * 257, np.uint16)).save(tmp_path / "grey.png")
    assert open_picture(tmp_path / "grey.png").getpixel((0, 0)) == (77, 77, 77)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=1)
    assert open_picture(tmp_path / "palette.png").getpixel((0, 0)) == WHITE
    Image.new("RGB", (2, 2), RED).save(tmp_path / "key.png", transparency=RED)
    assert open_picture(tmp_path / "key.png").getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_exif_says(tmp_path, orientation):
    """Read through the rotation, every orientation of one scene is that scene."""
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    scene = Image.fromarray(gradient())
    stored = scene
    for step in undo.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert open_picture(tmp_path / "a.png").tobytes() == scene.tobytes()


def test_damaged_exif_is_no_matter(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert open_picture(tmp_path / "a.jpg").size == (24, 16)


def test_first_picture_of_an_animation(tmp_path, caplog):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, WHITE)]
    for extension in ("gif", "webp", "png", "tiff"):
        path = tmp_path / f"a.{extension}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "sfumato"):
            assert open_picture(path).getpixel((1, 1)) == RED
        assert f"{path}: has several pictures" in caplog.text


def bomb(side: int) -> bytes:
    """A PNG whose header promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000))
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8001, 12_000, 50_000, 2_000_000_000])
def test_bombs_are_refused_from_the_header(tmp_path, monkeypatch, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InvalidRequest, match=r"bomb.png: .*too many pixels; at most 64000000"):
            open_picture(path)
        with pytest.raises(InvalidRequest, match="too many pixels"):
            open_mask(path)


def test_large_picture_in_memory_is_refused():
    with pytest.raises(InvalidRequest, match="9000x9000 are too many pixels"):
        open_picture(Image.new("1", (9000, 9000)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is no file"),
        (lambda path: path.write_bytes(b""), "is no picture"),
        (lambda path: path.write_text("hello"), "is no picture"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "picture"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, make, says):
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(InvalidRequest, match=rf"a.png: .*{says}"):
        open_picture(path)


def test_a_home_folder_that_nobody_has():
    with pytest.raises(InvalidRequest, match=r"~no-such-user/a.png: no such file"):
        open_picture("~no-such-user/a.png")


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
def test_any_cut_and_any_damage_ends_in_one_line(tmp_path, extension):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "jpeg" if extension == "jpg" else extension)
    whole = buffer.getvalue()
    random = np.random.default_rng(1)
    path = tmp_path / f"a.{extension}"
    refused = 0
    for trial in range(150):
        broken = bytearray(whole[: int(random.integers(len(whole)))] if trial % 2 else whole)
        for position in random.integers(0, max(1, len(broken)), 3 * (trial % 2 == 0)):
            broken[position] = random.integers(256)
        path.write_bytes(broken)
        try:
            open_picture(path)
        except InvalidRequest as error:
            assert str(path) in str(error)
            refused += 1
    assert refused >= 50
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidRequest, match=path.name):
        open_picture(path)


def test_arrays():
    pixels = gradient()
    assert open_picture(pixels).tobytes() == pixels.tobytes()
    assert open_picture(pixels / 255).tobytes() == pixels.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 3, 4, 4), np.float32),
        np.zeros((4, 4, 3), np.int64),
        np.full((4, 4, 3), 1.5),
        np.full((4, 4, 3), -0.1),
        np.full((4, 4, 3), np.nan),
        np.zeros((0, 4, 3), np.uint8),
        np.array("a"),
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(InvalidRequest, match="picture"):
        open_picture(array)


def test_colours_that_have_no_8_bits_are_refused():
    with pytest.raises(InvalidRequest, match="more than 16 bits"):
        open_picture(Image.fromarray(np.full((2, 2), 70_000, np.int32)))
    with pytest.raises(InvalidRequest, match=r"values from 0 to 300; must be in 0\.\.1"):
        open_picture(Image.fromarray(np.array([[0, 300]], np.float32)))


@pytest.mark.parametrize(
    ("given_size", "expected"),
    [
        ((512, 512), (512, 512)),
        ((500, 333), (504, 336)),
        ((300, 3), (304, 8)),
        ((1, 1), (8, 8)),
        ((1024, 1024), (1024, 1024)),
        ((4000, 3000), (592, 440)),
        ((1028, 1020), (1024, 1024)),
        ((50_000, 1), (50_000, 8)),
        ((1_000_000, 1), (131_072, 8)),
    ],
)
def test_size_of_the_result(given_size, expected):
    assert picture_size(given_size, SPACE, MOST) == expected
    assert picture_size(given_size[::-1], SPACE, MOST) == expected[::-1]


@given(
    st.integers(1, 60_000), st.integers(1, 60_000), st.sampled_from([8, 16, 64]), st.sampled_from([None, 576])
)
def test_sizes_are_always_usable(width, height, multiple, largest):
    space = SPACE.model_copy(update={"size_multiple": multiple, "largest_side": largest})
    got = picture_size((width, height), space, MOST)
    assert all(side >= multiple and side % multiple == 0 for side in got)
    assert got[0] * got[1] <= MOST
    assert values.size(got, space) == got


def test_fit_covers_and_crops_the_middle():
    stripes = np.zeros((10, 30, 3), np.uint8)
    stripes[:, 10:20] = RED
    assert fit(Image.fromarray(stripes), (10, 10)).tobytes() == stripes[:, 10:20].tobytes()
    larger = np.asarray(fit(Image.fromarray(stripes), (40, 40)))[..., 0]
    assert larger[:, 5:35].min() > 240, "thirds of black on both sides are gone"
    np.testing.assert_array_equal(larger, larger[:, ::-1])
    picture = Image.fromarray(gradient())
    assert fit(picture, (24, 16)).tobytes() == picture.tobytes()


def test_array_for_the_encoder():
    array = to_array(Image.fromarray(gradient()))
    assert (array.shape, array.dtype) == ((1, 3, 16, 24), np.float32)
    np.testing.assert_array_equal(((array[0] + 1) * 127.5).round().transpose(1, 2, 0), gradient())
    assert to_array(Image.new("RGB", (8, 8), (0, 255, 0)))[0, :, 0, 0].tolist() == [-1, 1, -1]


def half(left: tuple[int, ...], right: tuple[int, ...], mode: str) -> Image.Image:
    mask = Image.new(mode, (4, 2), left)
    mask.paste(right, (2, 0, 4, 2))
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        half(WHITE, BLACK, "RGB"),
        half((255,), (0,), "L"),
        half((1,), (0,), "1"),
        half((255, 255, 255, 255), (0, 0, 0, 255), "RGBA"),
        half((0, 0, 0, 255), (0, 0, 0, 0), "RGBA"),  # all black: painted on an empty layer
        half((255, 0, 0, 255), (0, 0, 0, 0), "RGBA"),  # painted red
        half((255, 255, 255, 255), (255, 255, 255, 0), "RGBA"),
        half((255, 255), (255, 0), "LA"),
        Image.fromarray(np.array([[65535, 65535, 0, 0]] * 2, np.uint16)),
        np.array([[True, True, False, False]] * 2),
        np.array([[1.0, 1.0, 0.0, 0.0]] * 2),
        np.array([[255, 255, 0, 0]] * 2, np.uint8),
    ],
)
def test_white_is_repainted(mask):
    read = open_mask(mask)
    assert read.mode == "L"
    assert np.asarray(read).tolist() == [[255, 255, 0, 0]] * 2


@pytest.mark.parametrize(
    "mask", [Image.new("RGB", (4, 4)), Image.new("RGBA", (4, 4)), Image.new("L", (4, 4), 127)]
)
def test_mask_without_white(mask):
    with pytest.raises(InvalidRequest, match="mask: nothing to repaint at 8x8"):
        fit_mask(open_mask(mask), (4, 4), (8, 8))


def test_white_may_not_be_lost_on_the_way():
    mask = np.zeros((64, 128), np.uint8)
    mask[:, :16] = 255
    with pytest.raises(InvalidRequest, match="nothing to repaint at 64x64"):
        fit_mask(Image.fromarray(mask), (128, 64), (64, 64))


def test_half_white_is_repainted():
    assert repainted(Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8))).tolist() == [
        [False, False, True, True]
    ]


@pytest.mark.parametrize("size", [(64, 64), (128, 96), (40, 96), (200, 16)])
@pytest.mark.parametrize("scale", [1, 2, 0.5])
def test_a_mask_goes_where_its_picture_goes(size, scale):
    """White on the mask is where the picture is white, whatever is cropped, in any resolution of the mask."""
    drawn = np.zeros((96, 160), np.uint8)
    drawn[32:64, 64:112] = 255
    picture = fit(Image.fromarray(drawn).convert("RGB"), size).convert("L")
    mask = Image.fromarray(drawn).resize((int(160 * scale), int(96 * scale)), Image.Resampling.NEAREST)
    fitted = fit_mask(mask, (160, 96), size)
    assert (fitted.mode, fitted.size) == ("L", size)
    np.testing.assert_array_equal(repainted(fitted), repainted(picture))
    if scale == 1:
        assert fitted.tobytes() == picture.tobytes()


def test_a_mask_that_is_off_by_a_pixel_reaches_the_edges_of_its_picture():
    mask = np.zeros((200, 200), np.uint8)
    mask[0] = 255
    fitted = repainted(fit_mask(Image.fromarray(mask), (200, 198), (200, 198)))
    assert fitted[0].all()
    assert not fitted[1:].any()


@pytest.mark.parametrize(
    ("mask_size", "picture", "good"),
    [
        ((100, 33), (1000, 333), True),
        ((512, 512), (1024, 1024), True),
        ((512, 512), (500, 500), True),
        ((1000, 990), (1000, 1000), False),
        ((333, 1000), (1000, 333), False),
        ((512, 512), (512, 768), False),
        ((1, 1), (64_000, 1000), False),
    ],
)
def test_a_mask_of_another_shape_is_refused(mask_size, picture, good):
    mask = Image.new("L", mask_size, 255)
    if good:
        assert fit_mask(mask, picture, (64, 64)).size == (64, 64)
        return
    with pytest.raises(
        InvalidRequest, match=rf"{'x'.join(map(str, mask_size))}.*{'x'.join(map(str, picture))}"
    ):
        fit_mask(mask, picture, (64, 64))


def test_mask_in_latents():
    mask = np.zeros((16, 24), np.uint8)
    mask[0, 0], mask[7, 8], mask[8, 16], mask[15, 23] = 255, 127, 128, 20
    cells = latent_mask(Image.fromarray(mask), 8)
    assert (cells.shape, cells.dtype) == ((1, 1, 2, 3), np.float32)
    assert cells[0, 0].tolist() == [[1, 0, 0], [0, 0, 1]]


def test_blend():
    original, generated = Image.fromarray(gradient()), Image.new("RGB", (24, 16), (9, 99, 199))
    mask = np.zeros((16, 24), np.uint8)
    mask[:, 8:16], mask[:, 16:] = 128, 255
    blended = np.asarray(compose(original, generated, Image.fromarray(mask)))
    np.testing.assert_array_equal(blended[:, :8], gradient()[:, :8])
    np.testing.assert_array_equal(blended[:, 16:], np.asarray(generated)[:, 16:])
    between = (gradient()[:, 8:16].astype(int) * 127 + np.asarray(generated)[:, 8:16].astype(int) * 128) / 255
    np.testing.assert_allclose(blended[:, 8:16], between, atol=1)


def test_canvas_keeps_the_picture():
    picture = gradient(64, 32)
    canvas, mask = expand(Image.fromarray(picture), 16, 0, 8, 24)
    assert canvas.size == mask.size == (88, 56)
    assert (canvas.mode, mask.mode) == ("RGB", "L")
    np.testing.assert_array_equal(np.asarray(canvas)[:32, 16:80], picture)
    np.testing.assert_array_equal(np.asarray(canvas)[:32, 15], picture[:, 0])
    expected = np.full((56, 88), 255)
    expected[0:30, 20:76] = 0  # within: 64 / 16 left and right, none above, 32 / 16 below
    np.testing.assert_array_equal(np.asarray(mask), expected)


def test_canvas_grows_to_multiples_rather_than_scaling_the_picture():
    picture = gradient(19, 13)
    canvas, _ = expand(Image.fromarray(picture), 4, 4, 4, 4, multiple=8)
    assert canvas.size == (32, 24)
    np.testing.assert_array_equal(np.asarray(canvas)[4:17, 4:23], picture)


def test_borders_that_were_not_asked_for_are_not_painted():
    picture = gradient(50, 21)
    for borders, columns, kept in (((6, 0, 0, 0), slice(14, 64), 17), ((0, 0, 6, 0), slice(0, 50), -17)):
        canvas, mask = expand(Image.fromarray(picture), *borders, multiple=16)
        assert canvas.size == mask.size == (64, 16)
        np.testing.assert_array_equal(np.asarray(canvas)[:, columns], picture[2:18])
        white = np.asarray(mask) == 255
        assert (white == white[:1]).all(), "no row is repainted more than another"
        assert white[0].tolist() == ([True] * 17 + [False] * 47)[:: kept // 17]
    canvas, mask = expand(Image.fromarray(picture), 0, 3, 0, 0, multiple=16)
    assert canvas.size == (48, 32)
    np.testing.assert_array_equal(np.asarray(canvas)[11:], picture[:, 1:49])
    assert (np.asarray(mask)[12:] == 0).all()


def test_too_small_to_be_cropped():
    with pytest.raises(InvalidRequest, match=r"picture of 30x10: too small .* multiples of 16"):
        expand(Image.new("RGB", (30, 10)), 8, 0, 0, 0, multiple=16)
    assert expand(Image.new("RGB", (30, 10)), 8, 1, 0, 0, multiple=16)[0].size == (48, 16)


def test_borders_wider_than_the_picture():
    canvas, mask = expand(Image.new("RGB", (1, 1), RED), 5, 5, 5, 5)
    assert canvas.getcolors() == [(121, RED)]
    assert mask.getcolors() == [(121, 255)]


@pytest.mark.parametrize("borders", [(0, 0, 0, 0), (-1, 0, 9, 0), (99_999, 0, 0, 99_999)])
def test_impossible_borders(borders):
    with pytest.raises(InvalidRequest, match="borders"):
        expand(Image.new("RGB", (8, 8)), *borders)


def test_borders_as_text():
    assert parse_borders("64") == (64, 64, 64, 64)
    assert parse_borders("64, 0,32,1") == (64, 0, 32, 1)
    for text in ("", "a", "-1", "1,2", "1,2,3,4,5", "1.5", "٣", "9" * 5000):
        with pytest.raises(InvalidRequest, match="borders"):
            parse_borders(text)


def test_the_given_picture_stays_as_it_was(tmp_path: Path):
    picture = Image.new("RGBA", (4, 4), (1, 2, 3, 4))
    open_picture(picture)
    open_mask(Image.new("L", (4, 4), 255))
    assert (picture.mode, picture.getpixel((0, 0))) == ("RGBA", (1, 2, 3, 4))
