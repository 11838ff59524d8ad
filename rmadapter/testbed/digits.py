"""The 1,797 scanned digits that scikit-learn ships, written out as two image folders.

The scans come writer after writer, so each class is cut in the middle of its order: the first half
(``pretrain/``) and the second (``digits/``) share hardly a hand, and what a model learned on the one is
measured on the other as on new people's writing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rmadapter.errors import InputError
from rmadapter.testbed import is_made, making

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGE_SIZE = 48
SCAN_MAXIMUM = 16  # scikit-learn's grey values run from 0 (paper) to 16 (ink)
MARKER = "written.json"


@dataclass(frozen=True)
class DigitsPaths:
    """The two image folders, each with class folders ``0`` .. ``9`` and a ``classnames.txt``.

    Args:
        pretrain: the half that the small CLIP is trained on, 896 images
        digits: the half that is the data set for adaptation, 901 images
    """

    pretrain: Path
    digits: Path


def write_digits(out: Path | str) -> DigitsPaths:
    """Write the digits under ``out`` as 48 x 48 grey PNG files, ink light on dark; both halves hold all ten classes.

    The same images come out on every machine. Each folder appears whole or not at all, and one that is
    already there is left as it is.

    Raises:
        InputError: scikit-learn is missing, or ``out`` holds a folder of that name which is not ours.
    """
    out = Path(out)
    paths = DigitsPaths(pretrain=out / "pretrain", digits=out / "digits")
    missing = [folder for folder in (paths.pretrain, paths.digits) if not is_made(folder, MARKER, _content(folder))]
    if missing:
        halves = _read_halves()
        for folder in missing:
            _write_half(folder, halves[folder.name])
    return paths


def _content(folder: Path) -> dict[str, object]:
    """What the marker of one half says: everything that decides its files."""
    return {"format": 1, "source": "sklearn.datasets.load_digits", "half": folder.name, "image_size": IMAGE_SIZE}


def _read_halves() -> dict[str, list[tuple[int, int, Image.Image]]]:
    """``(label, number of the scan, image)`` for the folders ``pretrain`` and ``digits``."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("the digits come with scikit-learn, which is missing; pip install 'rmadapter[demo]'") from None
    scans = load_digits()
    halves: dict[str, list[tuple[int, int, Image.Image]]] = {"pretrain": [], "digits": []}
    for label in range(len(NAMES)):
        numbers = [number for number, target in enumerate(scans.target) if target == label]
        for position, number in enumerate(numbers):
            grey = (scans.images[number] * (255 / SCAN_MAXIMUM)).round().astype("uint8")
            image = Image.fromarray(grey).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
            half = "pretrain" if position < len(numbers) // 2 else "digits"
            halves[half].append((label, number, image))
    return halves


def _write_half(folder: Path, items: list[tuple[int, int, Image.Image]]) -> None:
    with making(folder, MARKER, _content(folder)) as unfinished:
        for label in range(len(NAMES)):
            (unfinished / str(label)).mkdir()
        lines = [f"{label} {name}\n" for label, name in enumerate(NAMES)]
        (unfinished / "classnames.txt").write_text("".join(lines), encoding="utf-8")
        for label, number, image in items:
            image.save(unfinished / str(label) / f"{number:04d}.png")
