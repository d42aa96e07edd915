"""Pictures and masks that people bring: opened safely, brought to size, and put together again."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InvalidRequest
from ..families import Array
from ..files import expanded
from ..manifest import LatentSpace

ImageInput = str | Path | Image.Image | NDArray[Any]
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_INPUT_PIXELS = 64_000_000
"""Most pixels of a picture that comes in: 200 MB decoded."""
HALF_WHITE = 128
SAME_SHAPE = 0.01
"""How far, as a share, a mask's aspect ratio may be off its picture's: sides are whole numbers."""
SEAM = 16
"""Outpainting repaints one part in so many of the picture's side along each new border, to hide the seam."""
_log = logging.getLogger(__name__)


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """A picture file of FORMATS, its header read and its pixels not yet.

    Raises InvalidRequest naming the file where it is none, too large, or damaged in what the block reads.
    """
    path = expanded(path)
    try:
        if not path.is_file():
            what = "is no file" if path.exists() else "no such file"
            raise InvalidRequest(f"{path}: {what}; a picture is needed")
        with Image.open(path, formats=FORMATS) as image:
            _check_pixels(str(path), image.size)
            yield image
    except (InvalidRequest, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidRequest(f"{path}: too many pixels; at most {MAX_INPUT_PIXELS} are read") from error
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise InvalidRequest(f"{path}: is no picture that can be read; known are {known}") from error
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes make them trip over
        raise InvalidRequest(f"{path}: cannot be read as a picture ({error})") from error


def open_picture(source: ImageInput) -> Image.Image:
    """A picture as 8-bit RGB: turned as its EXIF says, transparency on white, the first one of an animation.

    source: a file, a PIL image, or an array [height, width, 3] of uint8, or of floats in 0..1.
    Raises InvalidRequest naming the source where it cannot be used.
    """
    return _on(_loaded(source), background=255).convert("RGB")


def open_mask(source: ImageInput) -> Image.Image:
    """A mask as 8-bit grey: white is repainted.

    Its brightness counts, what is transparent being black; but where all that can be seen has one colour, its
    opacity does, as of a mask that was painted on an empty layer.
    source: as for a picture; an array may also be [height, width], and bool.
    Raises InvalidRequest where it cannot be used.
    """
    return _brightness(_loaded(source))


def picture_size(image_size: tuple[int, int], space: LatentSpace, most: int) -> tuple[int, int]:
    """Width and height of the result where none is asked for.

    The picture's own size where it has at most `most` pixels, else that of its shape with the model's own
    area; smaller where a side would be longer than the model's longest. Each side is then the nearest
    multiple of size_multiple, at least one. If that makes more than `most` pixels again, the longer side is
    cut.
    """
    multiple = space.size_multiple
    area = math.prod(image_size)
    scale = 1.0 if area <= most else math.sqrt(math.prod(space.default_size) / area)
    if space.largest_side:
        scale = min(scale, space.largest_side / max(image_size))
    width, height = (max(1, int(side * scale / multiple + 0.5)) * multiple for side in image_size)
    if width * height <= most:
        return width, height
    if width < height:
        return width, max(1, most // width // multiple) * multiple
    return max(1, most // height // multiple) * multiple, height


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale a picture to cover `size`, (width, height), and crop it in the middle."""
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def fit_mask(mask: Image.Image, before: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """Scale and crop a mask to `size` exactly as `fit` does its picture, whose size was `before`.

    The mask may be of another resolution than the picture, but must be of its shape.
    Raises InvalidRequest naming both sizes where it is not, and where nothing to repaint is left.
    """
    width, height = before
    if abs(mask.width * height - width * mask.height) > SAME_SHAPE * width * mask.height:
        raise InvalidRequest(
            f"mask of {mask.width}x{mask.height}: its picture of {width}x{height} has another shape; "
            "make one over the whole picture"
        )
    if mask.size != before:
        mask = mask.resize(before, Image.Resampling.LANCZOS)
    mask = fit(mask, size)
    if not repainted(mask).any():
        raise InvalidRequest(f"mask: nothing to repaint at {size[0]}x{size[1]}; paint those places white")
    return mask


def to_array(image: Image.Image) -> Array:
    """An RGB picture as the VAE's encoder takes it: [1, 3, height, width] float32 in -1..1."""
    pixels: Array = np.asarray(image, np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[None] / np.float32(127.5) - np.float32(1))


def repainted(mask: Image.Image) -> NDArray[np.bool_]:
    """Which pixels of a mask are repainted, [height, width]: those that are at least half white."""
    return np.asarray(mask) >= HALF_WHITE


def latent_mask(mask: Image.Image, factor: int) -> Array:
    """A mask in latents, [1, 1, height / factor, width / factor] float32: 1 is repainted, 0 stays.

    A latent is repainted where any of its pixels is. Sides must be multiples of factor.
    """
    white = repainted(mask)
    height, width = (side // factor for side in white.shape)
    cells = white.reshape(height, factor, width, factor).any(axis=(1, 3))
    return np.asarray(cells, np.float32)[None, None]


def compose(original: Image.Image, generated: Image.Image, mask: Image.Image) -> Image.Image:
    """Blend RGB pictures of one size: exactly the original's pixels under black, the other's under white."""
    return Image.composite(generated, original, mask)


def parse_borders(text: str) -> tuple[int, int, int, int]:
    """Read `64`, all around, or `64,0,64,0`: left, top, right, bottom, in pixels."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, 4) or not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidRequest(
            f"borders {text!r}: give pixels as 64, or as 64,0,64,0 for left, top, right and bottom"
        )
    if any(len(part) > 5 for part in parts):
        raise InvalidRequest(f"borders {text!r}: too wide")
    left, top, right, bottom = (int(part) for part in parts * (4 // len(parts)))
    return left, top, right, bottom


def expand(
    image: Image.Image, left: int, top: int, right: int, bottom: int, multiple: int = 1
) -> tuple[Image.Image, Image.Image]:
    """An RGB picture on a larger canvas, and the mask of what is to be painted there.

    Beyond its borders the picture is mirrored, as a first guess. The mask is white there and over a band
    within, one SEAMth of the picture's side wide; under the rest of it the picture is the same to the bit.
    multiple: sides of the canvas become multiples of it, by a wider right or bottom border, or left or top
        where that is the only one; by cropping the picture in the middle where neither is asked for.

    Raises InvalidRequest where nothing is added, nothing of the picture is left, or more than
    MAX_INPUT_PIXELS come out.
    """
    if min(left, top, right, bottom) < 0 or left == top == right == bottom == 0:
        raise InvalidRequest(
            f"borders {left},{top},{right},{bottom}: give at least one above zero, none below"
        )
    image = _cropped(image, multiple, across=not (left or right), down=not (top or bottom))
    width, height = image.size
    left, right = _up_to_multiple(left, right, width, multiple)
    top, bottom = _up_to_multiple(top, bottom, height, multiple)
    _check_pixels("the picture with its borders", (left + width + right, top + height + bottom))
    canvas = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="symmetric")
    mask = np.full(canvas.shape[:2], 255, np.uint8)
    rows = slice(top + _seam(top, height), top + height - _seam(bottom, height))
    columns = slice(left + _seam(left, width), left + width - _seam(right, width))
    mask[rows, columns] = 0
    return Image.fromarray(canvas), Image.fromarray(mask)


def _cropped(image: Image.Image, multiple: int, across: bool, down: bool) -> Image.Image:
    """The middle of a picture, its width a multiple where `across`, its height where `down`."""
    width, height = image.size
    spare_x, spare_y = width % multiple * across, height % multiple * down
    if spare_x == width or spare_y == height:
        raise InvalidRequest(
            f"picture of {width}x{height}: too small for this model without borders on all sides; sides are "
            f"multiples of {multiple}"
        )
    left, top = spare_x // 2, spare_y // 2
    return image.crop((left, top, left + width - spare_x, top + height - spare_y))


def _up_to_multiple(before: int, after: int, side: int, multiple: int) -> tuple[int, int]:
    more = -(before + side + after) % multiple
    return (before + more, after) if before and not after else (before, after + more)


def _seam(border: int, side: int) -> int:
    return max(1, side // SEAM) if border else 0


def _name(source: ImageInput) -> str:
    return str(source) if isinstance(source, str | Path) else "picture"


def _check_pixels(name: str, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_INPUT_PIXELS:
        raise InvalidRequest(
            f"{name}: {width}x{height} are too many pixels; at most {MAX_INPUT_PIXELS} are read"
        )
    if width < 1 or height < 1:
        raise InvalidRequest(f"{name}: {width}x{height} is an empty picture")


def _loaded(source: ImageInput) -> Image.Image:
    """Pixels of any source, upright, in one of Pillow's 8-bit modes."""
    name = _name(source)
    if isinstance(source, str | Path):
        with opened(source) as image:
            if getattr(image, "is_animated", False):
                _log.warning("%s: has several pictures; the first one is used", name)
            image.load()
            return _eight_bits(_upright(image), name)
    if isinstance(source, Image.Image):
        _check_pixels(name, source.size)
        try:
            source.load()
        except Exception as error:  # a lazy picture of a damaged file, as in `opened`
            raise InvalidRequest(f"{name}: cannot be read as a picture ({error})") from error
        return _eight_bits(_upright(source), name)
    return _from_array(np.asarray(source), name)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says; what says it in a damaged way says nothing."""
    with suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale 16-bit and floating-point greys, which Pillow itself would cut off at 255."""
    if image.mode == "F":
        return _from_array(np.asarray(image), name)
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise InvalidRequest(f"{name}: has more than 16 bits for a colour; save it with 8 or 16")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _from_array(pixels: NDArray[Any], name: str) -> Image.Image:
    """An array [height, width, 3] or [height, width]: uint8, bool, or floats in 0..1."""
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise InvalidRequest(f"{name} of shape {pixels.shape}: must be [height, width, 3]")
    _check_pixels(name, (pixels.shape[1], pixels.shape[0]))
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.float32)
    if pixels.dtype == np.uint8:
        return Image.fromarray(pixels)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise InvalidRequest(f"{name} of type {pixels.dtype}: must be uint8, or floats in 0..1")
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # so written, NaN fails as well
        raise InvalidRequest(f"{name}: has values from {pixels.min():g} to {pixels.max():g}; must be in 0..1")
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def _on(image: Image.Image, background: int) -> Image.Image:
    """A picture on plain grey, where it is transparent at all."""
    if not image.has_transparency_data:
        return image
    picture = image.convert("RGBA")
    plain = Image.new("RGBA", picture.size, (background, background, background, 255))
    return Image.alpha_composite(plain, picture)


def _brightness(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        alpha = picture.getchannel("A")
        opacity = np.asarray(alpha)
        colours = np.asarray(picture)[opacity > 0, :3]
        if (opacity < 255).any() and (colours == colours[:1]).all():
            return alpha
    return _on(image, background=0).convert("RGB").convert("L")
