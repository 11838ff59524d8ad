"""The bundled drawings: which emoji there are, and each vendor's picture of them.

``files/catalogue.json`` lists the emoji, ``files/STYLE.webp`` holds one style's drawings of them, 48 x 48 pixels with
transparency, 40 a row, in the catalogue's order. The hash of every bundled file stands in ``files/manifest.json``,
which ``python -m rmadapter.testbed.build`` writes with them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from rmadapter.data.emoji import GROUPS
from rmadapter.errors import InputError, check_choice

FILES = Path(__file__).parent / "files"
CATALOGUE, MANIFEST = "catalogue.json", "manifest.json"
SIDE = 48  # pixels
COLUMNS = 40


@dataclass(frozen=True)
class Style:
    """One vendor's drawings.

    Attributes:
        name: of the atlas, ``files/NAME.webp``.
        pretrained: whether the small CLIP was pretrained on it. Such a style draws the whole catalogue, the others
            draw the classes of the data sets.
    """

    name: str
    pretrained: bool


STYLES = {
    style.name: style
    for style in (
        Style("noto", pretrained=True),
        Style("twemoji", pretrained=True),
        Style("fluent", pretrained=False),
        Style("emojione", pretrained=False),
        Style("openmoji", pretrained=False),
    )
}


@dataclass(frozen=True)
class Emoji:
    """One emoji: code points in hexadecimal, joined by ``-``; CLDR short name; group.

    ``everywhere`` says that all styles draw it: then it is a class of its group's data set.
    """

    code: str
    name: str
    group: str
    everywhere: bool


def read_bundled(name: str) -> bytes:
    """The bundled file ``name``, whose hash is the manifest's.

    Raises:
        InputError: it is missing or has been changed, with both hashes.
    """
    path = FILES / name
    try:
        expected = _manifest()[name]
        content = path.read_bytes()
    except (OSError, KeyError) as error:
        raise InputError(f"bundled file {path} is missing; install rmadapter again") from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise InputError(
            f"bundled file {path} is damaged: SHA-256 {found}, expected {expected}; install rmadapter again"
        )
    return content


def _manifest() -> dict[str, str]:
    path = FILES / MANIFEST
    try:
        return json.loads(path.read_text(encoding="utf-8"))["sha256"]
    except FileNotFoundError as error:
        raise InputError(f"bundled file {path} is missing; install rmadapter again") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"bundled file {path} is damaged ({error!r}); install rmadapter again") from error


@cache
def catalogue() -> tuple[Emoji, ...]:
    """All bundled emoji by group and, in it, by name."""
    return tuple(Emoji(**entry) for entry in json.loads(read_bundled(CATALOGUE)))


def classes(group: str) -> tuple[Emoji, ...]:
    """The emoji of ``group`` that every style draws, in alphabetical order of their names."""
    check_choice("group", group, GROUPS)
    return tuple(emoji for emoji in catalogue() if emoji.group == group and emoji.everywhere)


@cache
def drawings(style: str) -> dict[str, np.ndarray]:
    """Code -> drawing, uint8 [48, 48, 4] with straight alpha; read only.

    Raises:
        InputError: unknown style, or an atlas that is missing or damaged.
    """
    check_choice("style", style, STYLES)
    drawn = [emoji for emoji in catalogue() if emoji.everywhere or STYLES[style].pretrained]
    file = f"{style}.webp"
    content = read_bundled(file)
    tiles = cut(np.asarray(_decode(content)), len(drawn))
    tiles.setflags(write=False)
    return {emoji.code: tile for emoji, tile in zip(drawn, tiles, strict=True)}


def _decode(content: bytes) -> Image.Image:
    import io

    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGBA")


def cut(atlas: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` tiles [count, 48, 48, 4] of an atlas [48 rows, 48 * 40, 4]."""
    rows = atlas.shape[0] // SIDE
    tiles = atlas.reshape(rows, SIDE, COLUMNS, SIDE, 4).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 4)
    return np.ascontiguousarray(tiles[:count])


def paste(tiles: np.ndarray) -> np.ndarray:
    """The inverse of ``cut``: tiles [count, 48, 48, 4] in rows of 40, the rest transparent."""
    rows = -(-len(tiles) // COLUMNS)
    grid = np.zeros((rows * COLUMNS, SIDE, SIDE, 4), np.uint8)
    grid[: len(tiles)] = tiles
    return grid.reshape(rows, COLUMNS, SIDE, SIDE, 4).swapaxes(1, 2).reshape(rows * SIDE, COLUMNS * SIDE, 4)
