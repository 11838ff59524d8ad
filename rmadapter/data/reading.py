"""Image files as RGB: any format that Pillow decodes, upright, eight bits a channel."""

from __future__ import annotations

import contextlib
import warnings
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from rmadapter.data.image_files import FORMATS
from rmadapter.errors import InputError

# Most pixels that an image may have. Decoding takes up to 8 bytes a pixel, and eight images are checked at a time.
MAX_PIXELS = 64_000_000
# Most that one side may be of the other: the shorter one is scaled to the model's size before the rest is cut off.
MAX_RATIO = 500
# Of what becomes of a file's bytes here; what is kept of decoded images belongs to one of them.
RULES = 2
# Largest values of images of more than eight bits: of cameras and scanners that fill 10, 12 or 14 bits of 16 as well.
DEPTHS = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16))
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns of odd metadata and of many pixels, without the file's name. Here an image is read or it is not.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: Path) -> Image.Image:
    """The image in a file; see ``read_image_file``.

    Raises:
        InputError: it is missing, and what that raises. No other error is raised, whatever is in the file.
    """
    try:
        # An open file: by its path Pillow maps some TIFFs into memory, those turned by EXIF with their sides swapped.
        with path.open("rb") as file:
            return read_image_file(file, path)
    except OSError as error:
        raise InputError(f"image {path} cannot be read: {error.strerror or error}") from error


def read_image_file(file: BinaryIO, name: Path | str, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in an open ``file`` as RGB, turned by its EXIF orientation; the first picture of several.

    Transparency is dropped and the colours below it show, as with PIL's ``convert``. Grey images of more than eight
    bits are scaled: see ``to_eight_bits``. Of 16-bit colours the upper eight bits are taken.

    Raises:
        InputError: damaged, no image, or one beyond ``most_pixels`` or ``MAX_RATIO``; the message calls it ``name``. No
            other error is raised, whatever is in the file.
    """
    try:
        with Image.open(file, formats=_formats()) as image:
            _check_size(name, image.size, most_pixels)
            image.load()
            _check_size(name, image.size, most_pixels)  # some formats have another picture than their header says
            turned = UPRIGHT.get(_orientation(image))
            rgb = _as_rgb(image)
            return rgb if turned is None else rgb.transpose(turned)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow itself refuses so many
        raise _too_large(name, "more", most_pixels) from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"image {name} cannot be read: it is no image of a format that is read") from error
    except OSError as error:
        raise InputError(f"image {name} cannot be read: {error.strerror or error}") from error
    # Decoders of damaged files raise anything: ValueError, SyntaxError, struct.error, MemoryError, RecursionError, ...
    except Exception as error:
        raise InputError(f"image {name} cannot be read: {str(error) or type(error).__name__}") from error


@cache
def _formats() -> tuple[str, ...]:
    """``FORMATS``, as far as the installed Pillow opens them."""
    Image.init()
    return tuple(format for format in FORMATS if format in Image.OPEN)


def _check_size(name: Path | str, size: tuple[int, int], most_pixels: int) -> None:
    width, height = size
    if width * height > most_pixels:
        raise _too_large(name, f"{width} x {height}", most_pixels)
    if min(size) < 1 or max(size) > MAX_RATIO * min(size):
        raise InputError(
            f"image {name} cannot be read: it has {width} x {height} pixels; valid: one side up to {MAX_RATIO} times "
            "as long as the other"
        )


def _too_large(name: Path | str, pixels: str, most_pixels: int) -> InputError:
    return InputError(
        f"image {name} cannot be read: it has {pixels} pixels; valid: up to {most_pixels:,} of them; make it smaller"
    )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation tag; 1 where there is none, or it is damaged, as the pixels may not be."""
    with contextlib.suppress(Exception):
        return int(image.getexif().get(ORIENTATION, 1))
    return 1


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # A PGM file says what its largest value is, and Pillow has scaled it to 16 bits.
        largest = DEPTHS[-1] if image.format == "PPM" and image.mode.startswith("I") else None
        return Image.fromarray(to_eight_bits(np.asarray(image), largest)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def to_eight_bits(pixels: np.ndarray, largest: int | None = None) -> np.ndarray:
    """Grey values of any integer or floating type, scaled to uint8: black and white are the ends of the image's range.

    The range begins at 0. It ends at ``largest`` where the file declares it; else at the first of 255, 1023, 4095,
    16383 and 65535 that no value of an integer image is above, and at 1 for one of floating numbers. An image that goes
    beyond it is scaled from its smallest to its largest value. Of values that are not finite, infinity is white and the
    others are black.

    Raises:
        ValueError: no value is finite.
    """
    floating = np.issubdtype(pixels.dtype, np.floating)
    finite = pixels[np.isfinite(pixels)] if floating else pixels
    if not finite.size:
        raise ValueError("none of its values is finite")
    low, high = float(finite.min()), float(finite.max())
    ends = (1,) if floating else DEPTHS if largest is None else (largest,)
    end = next((end for end in ends if high <= end), None)
    if low >= 0 and end is not None:
        low, high = 0.0, float(end)
    with np.errstate(invalid="ignore"):  # a "signalling" NaN
        values = pixels.astype(np.float64 if floating else np.float32)
    if floating:
        np.nan_to_num(values, copy=False, nan=low, posinf=high, neginf=low)
    values -= low
    values *= 255 / ((high - low) or 1)
    return np.rint(values, out=values).astype(np.uint8)
