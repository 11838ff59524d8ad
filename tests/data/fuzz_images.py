"""Damaged image files of every format that is read: the reader gives an image or says that it cannot.

    python tests/data/fuzz_images.py --files 30000 --seed 0

Prints how many files were read and how many refused, and each file for which something else happened: another error
than InputError, a picture that is not RGB, more than ten seconds. A failure's number repeats it: ``--first NUMBER
--files 1`` with the same seed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import signal
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from rmadapter.data.image_files import FORMATS
from rmadapter.data.reading import read_image
from rmadapter.errors import InputError

MODES = ("RGB", "L", "P", "RGBA", "1", "I;16", "I", "F", "CMYK", "LA", "YCbCr")
SIZE = (24, 20)
LONGEST_SECONDS = 10
SIGNATURES = (
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"BM",
    b"8BPS\0\1",
    b"qoif",
    b"DDS ",
)


def picture(mode: str) -> Image.Image:
    """A picture of noise and even parts, which no format packs to nothing."""
    values = np.random.default_rng(len(mode)).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    values[:, : SIZE[0] // 2] = 90
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(values[..., 0].astype(np.float32) / 255)
    return Image.fromarray(values).convert(mode)


@cache
def whole_files() -> dict[str, bytes]:
    """A whole file of every format in every mode that Pillow writes, some in several ways; and of formats by hand."""
    Image.init()
    found: dict[str, bytes] = {}

    def save(name: str, image: Image.Image, format: str, **options) -> None:
        content = io.BytesIO()
        with contextlib.suppress(Exception):  # a mode that the format has not, a codec that was not built in
            image.save(content, format, **options)
            found[name] = content.getvalue()

    for format in (format for format in FORMATS if format in Image.SAVE):
        for mode in MODES if format != "ICNS" else ("RGBA",):  # which holds a picture of a megapixel
            save(f"{format} {mode}", picture(mode), format, **({"speed": 10} if format == "AVIF" else {}))
    rgb, exif = picture("RGB"), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "turned"
    frames = {"save_all": True, "append_images": [picture("RGB").rotate(180), picture("RGB").rotate(90)]}
    for format in ("GIF", "PNG", "WEBP", "TIFF", "MPO"):
        save(f"{format} frames", rgb, format, **frames)
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"):
        save(f"{format} exif", rgb, format, exif=exif)
    save("JPEG progressive", rgb, "JPEG", progressive=True)
    save("WEBP lossless", rgb, "WEBP", lossless=True)
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits", "group4", "zstd", "lzma", "webp"):
        save(f"TIFF {compression}", picture("1" if compression == "group4" else "RGB"), "TIFF", compression=compression)
    return {**found, **_by_hand(found)}


def _by_hand(written: dict[str, bytes]) -> dict[str, bytes]:
    """Whole files of formats that Pillow reads and does not write."""
    width, height = SIZE
    grey, rgb = picture("L").tobytes(), picture("RGB").tobytes()
    cards = ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", f"NAXIS1  = {width}", f"NAXIS2  = {height}", "END")
    bitmap = written["DIB RGB"]
    found = {
        "FITS": "".join(card.ljust(80) for card in cards).ljust(2880).encode() + grey.ljust(2880, b"\0"),
        "SUN": struct.pack(">8I", 0x59A66A95, width, height, 8, len(grey), 1, 0, 0) + grey,
        "DCX": struct.pack("<3I", 0x3ADE68B1, 12, 0) + written["PCX L"],
        "CUR": struct.pack("<3H4B2H2I", 0, 2, 1, width, height, 0, 0, 1, 1, len(bitmap), 22) + bitmap,
        "PSD": struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, height, width, 8, 3) + struct.pack(">3IH", 0, 0, 0, 0) + rgb,
        "GBR": struct.pack(">5I4sI", 34, 2, width, height, 1, b"GIMP", 10) + b"brush\0" + grey,
        "FTEX": struct.pack("<4s6i", b"FTEX", 1, width, height, 1, 1, 0) + struct.pack("<2iI", 0, 32, len(rgb)) + rgb,
        "PIXAR": (b"\x80\xe8\0\0".ljust(416, b"\0") + struct.pack("<6H", height, width, 0, 0, 14, 2)).ljust(1024, b"\0")
        + rgb,
        "XPM": b'/* XPM */\nstatic char *a[] = {\n"4 2 2 1",\n"a c #ff0000",\n"b c #00ff00",\n"abab",\n"baba"};\n',
        "FLI": struct.pack("<IHHHHHHI", 200, 0xAF11, 1, width, height, 8, 3, 5).ljust(128, b"\0")
        + struct.pack("<IHH8x", len(grey) + 22, 0xF1FA, 1)
        + struct.pack("<IH", len(grey) + 6, 16)
        + grey,
    }
    return found


def damaged(whole: dict[str, bytes], seed: int, number: int) -> tuple[str, bytes]:
    """Damaged file ``number`` of ``seed``: its name, which tells what it was made from, and its content."""
    draw = random.Random(f"{seed} {number}")
    name = list(whole)[number % len(whole)]
    content = bytearray(whole[name])
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randrange(min(len(content), draw.choice((32, 128, 1 << 20))) or 1)
        length = draw.choice((1, 1, 2, 4, 8, 64))
        kind = draw.choice(("cut", "bits", "noise", "extreme", "extreme", "insert", "delete", "splice", "signature"))
        if kind == "cut":
            del content[at:]
        elif kind == "bits" and content:
            content[at] ^= 1 << draw.randrange(8)
        elif kind == "noise":
            content[at : at + length] = draw.randbytes(length)
        elif kind == "extreme":
            content[at : at + length] = draw.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
        elif kind == "insert":
            content[at:at] = draw.randbytes(length)
        elif kind == "delete":
            del content[at : at + length]
        elif kind == "splice":
            other = whole[draw.choice(list(whole))]
            content[at:] = other[draw.randrange(len(other)) :]
        else:
            signature = draw.choice(SIGNATURES)
            content[: len(signature)] = signature
    return name, bytes(content)


def outcome(path: Path) -> str:
    """ "read" or "refused"; else what happened in place of them."""
    try:
        image = read_image(path)
        return "read" if image.mode == "RGB" and min(image.size) > 0 else f"a picture {image.mode} {image.size}"
    except InputError as error:
        return "refused" if str(path) in str(error) else f"a message without the file's name: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def outcomes(seed: int, numbers: range) -> Iterator[tuple[int, str, str]]:
    """Number, name and outcome of each damaged file."""
    whole = whole_files()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged"
        for number in numbers:
            name, content = damaged(whole, seed, number)
            path.write_bytes(content)
            yield number, name, outcome(path)


def main() -> int:
    """0 where every file was read or refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()

    def too_long(*_) -> None:
        raise TimeoutError(f"more than {LONGEST_SECONDS} seconds")

    signal.signal(signal.SIGALRM, too_long)
    counts: Counter[str] = Counter()
    formats = set()
    signal.alarm(LONGEST_SECONDS)
    for number, name, found in outcomes(options.seed, range(options.first, options.first + options.files)):
        signal.alarm(LONGEST_SECONDS)  # for the next one
        formats.add(name)
        counts[found if found in ("read", "refused") else "failed"] += 1
        if found not in ("read", "refused"):
            print(f"file {number}, from {name}: {found}")
    signal.alarm(0)
    print(
        f"{options.files} files from {len(formats)} whole ones: "
        + ", ".join(f"{n} {what}" for what, n in counts.items())
    )
    return counts["failed"] > 0


if __name__ == "__main__":
    raise SystemExit(main())
