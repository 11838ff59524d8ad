"""Image files as RGB: every mode and depth, upright, and nothing but a sentence about those that cannot be read."""

from __future__ import annotations

import warnings
import zlib

import fuzz_images
import numpy as np
import pytest
from PIL import Image

from rmadapter.data import read_image, reading
from rmadapter.data.image_files import FORMATS, endings
from rmadapter.data.reading import to_eight_bits
from rmadapter.errors import InputError

# pytest sets the filters of warnings back that the reader has set for Pillow's.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "LA", "1", "I;16"])
def test_every_mode_is_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(path)
    else:
        Image.new("RGB", (4, 4), (156, 156, 156)).convert(mode).save(path)
    image = read_image(path)
    assert image.mode == "RGB"
    value = image.getpixel((0, 0))[0]
    assert value in (0, 255) if mode == "1" else abs(value - 156) < 5


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_unreadable_images_are_named(tmp_path, content):
    path = tmp_path / "bad.png"
    if content is None:
        Image.new("RGB", (64, 64), (1, 2, 3)).save(path)
        content = path.read_bytes()[:-40]
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"image .*bad\.png cannot be read"):
        read_image(path)
    with pytest.raises(InputError, match=r"none\.png cannot be read"):
        read_image(tmp_path / "none.png")


SMALL_RANGE = np.array([[0, 1000], [2000, 4000]])


@pytest.mark.parametrize(
    ("name", "pixels", "expected"),
    [
        ("16.png", np.array([[0, 65535], [32768, 257]], np.uint16), [0, 255, 128, 1]),
        ("16.tif", np.array([[0, 65535], [32768, 257]], np.uint16), [0, 255, 128, 1]),
        ("12_in_16.png", SMALL_RANGE.astype(np.uint16), [0, 62, 125, 249]),  # of 4095
        ("12_in_16.tif", SMALL_RANGE.astype(np.uint16), [0, 62, 125, 249]),
        ("int.tif", np.array([[0, 65535], [32768, 257]], np.int32), [0, 255, 128, 1]),
        ("bytes.tif", np.array([[0, 255], [128, 1]], np.int32), [0, 255, 128, 1]),
        ("large.tif", np.array([[0, 2**31 - 1], [2**30, 0]], np.int32), [0, 255, 128, 0]),
        ("signed.tif", np.array([[-1000, 1000], [0, 500]], np.int32), [0, 255, 128, 191]),
        ("share.tif", np.array([[0, 1], [0.5, 0.25]], np.float32), [0, 255, 128, 64]),
        ("dark.tif", np.array([[0, 0.5], [0.25, 0.1]], np.float32), [0, 128, 64, 26]),
        ("floats.tif", np.array([[-3, 5], [1, 3]], np.float32), [0, 255, 128, 191]),
        ("odd.tif", np.array([[np.nan, np.inf], [0.5, -np.inf]], np.float32), [0, 255, 128, 0]),
        ("even.tif", np.full((2, 2), 100_000, np.int32), [0, 0, 0, 0]),
    ],
)
def test_grey_of_more_than_eight_bits_is_scaled_by_its_range(tmp_path, name, pixels, expected):
    Image.fromarray(pixels).save(tmp_path / name)
    found = np.asarray(read_image(tmp_path / name))
    assert (found == found[..., :1]).all()
    assert np.abs(found[..., 0].ravel().astype(int) - expected).max() <= 1


def test_a_pgm_file_says_what_its_white_is(tmp_path):
    for largest, values in ((4095, (0, 1000, 4095, 2048)), (65535, (0, 1000, 65535, 300)), (1000, (0, 10, 1000, 500))):
        content = b"P5 2 2 %d\n" % largest + np.array(values, ">u2").tobytes()
        (tmp_path / "x.pgm").write_bytes(content)
        found = np.asarray(read_image(tmp_path / "x.pgm"))[..., 0].ravel()
        assert np.abs(found - np.array(values) * 255 / largest).max() <= 1


def test_values_of_which_none_is_finite():
    with pytest.raises(ValueError, match="none of its values is finite"):
        to_eight_bits(np.full((2, 2), np.nan, np.float32))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_orientation_says(tmp_path, orientation):
    """The picture as it was taken: white above, and red left of green below."""
    upright = np.full((16, 24, 3), 255, np.uint8)
    upright[8:, :12], upright[8:, 12:] = (255, 0, 0), (0, 255, 0)
    # What is stored, by the meaning of each number: where its first row and its first column are in the picture.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("x.png", "x.tif", "x.webp", "x.jpg"):
        options = {"quality": 95} if name == "x.jpg" else {"lossless": True} if name == "x.webp" else {}
        Image.fromarray(stored).save(tmp_path / name, exif=exif, **options)
        found = np.asarray(read_image(tmp_path / name)).astype(int)
        assert found.shape == upright.shape
        corners = found[[2, 13, 13], [12, 3, 20]]
        assert np.abs(corners - [(255, 255, 255), (255, 0, 0), (0, 255, 0)]).max() < 30, name


def test_damaged_metadata_costs_no_image(tmp_path):
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\0")
    assert read_image(tmp_path / "x.jpg").getpixel((0, 0)) == (9, 9, 9)


def test_the_first_picture_of_several_and_what_lies_below_transparency(tmp_path):
    first, other = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    for name in ("x.gif", "x.png", "x.webp", "x.tif"):
        options = {"lossless": True} if name == "x.webp" else {}
        first.save(tmp_path / name, save_all=True, append_images=[other], **options)
        assert read_image(tmp_path / name).getpixel((0, 0)) == (255, 0, 0), name
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (10, 20, 30)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    def png(width, height):
        header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, 0))
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
        parts = [
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
            for kind, data in chunks
        ]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    file = tmp_path / "huge.png"
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    for size, message in (
        (
            (8001, 8000),
            r"huge\.png cannot be read: it has 8001 x 8000 pixels; valid: up to 64,000,000 of them; make it",
        ),
        ((13300, 13300), "it has 13300 x 13300 pixels"),
        ((60_000, 60_000), "it has more pixels; valid: up to 64,000,000"),
        ((10_000, 4), "it has 10000 x 4 pixels; valid: one side up to 500 times as long as the other"),
    ):
        file.write_bytes(png(*size))
        with pytest.raises(InputError, match=message):
            read_image(file)
    file.write_bytes(png(13300, 13300))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as python -W error
        with pytest.raises(InputError, match="it has more pixels"):
            read_image(file)


def test_every_raster_format_that_pillow_decodes_is_read(tmp_path):
    """A new one in Pillow has to be taken in or named here."""
    Image.init()
    not_decoded = {"BUFR", "GRIB", "HDF5", "MPEG", "EPS", "WMF"}  # only identified, or by another program
    no_ending = {"IMT", "MCIDAS", "SPIDER", "XVTHUMB"}
    others = {"IPTC", "PCD", "PALM", "FPX", "MIC", "IM"}  # no picture of its own, a part of it, or on its way out
    assert set(Image.OPEN) <= {*FORMATS, *not_decoded, *no_ending, *others}
    assert {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".gif", ".webp", ".tif", ".bmp", ".pgm"} <= set(endings())
    for name, content in fuzz_images.whole_files().items():
        (tmp_path / "whole").write_bytes(content)
        assert fuzz_images.outcome(tmp_path / "whole") == "read", name


def test_damaged_files_are_read_or_refused():
    """A few of ``fuzz_images``; 30,000 take two minutes."""
    strange = [found for found in fuzz_images.outcomes(0, range(200)) if found[2] not in ("read", "refused")]
    assert not strange


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RecursionError("deep"), SyntaxError("odd"), zlib.error("odd"), UserWarning("odd"), KeyError(1)],
)
def test_whatever_a_decoder_raises(tmp_path, monkeypatch, error):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")

    def load(self):
        raise error

    monkeypatch.setattr(reading.Image.Image, "load", load)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(InputError, match=r"x\.png cannot be read: (MemoryError|deep|odd|1)"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_grey_tiffs_are_turned_and_not_sheared(tmp_path, orientation):
    pixels = np.arange(60 * 40, dtype=np.uint8).reshape(60, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.tif", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.tif")), np.asarray(read_image(tmp_path / "a.png")))
