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
    """One set of drawings.

    Attributes:
        name: of the atlas, ``files/NAME.webp``.
        vendor: who drew it; several styles of one vendor are alike.
        pretrained: whether the small CLIP was pretrained on it. Such a style draws the whole catalogue, the others
            draw the classes of the data sets.
        several: whether it draws those of ``drawings_GROUP`` alone.
    """

    name: str
    vendor: str
    pretrained: bool = False
    several: bool = False

    def draws(self, everywhere: bool, several: bool) -> bool:
        """Whether it has a drawing of an emoji with these marks in the catalogue."""
        return self.pretrained or (several if self.several else everywhere)


STYLES = {
    style.name: style
    for style in (
        Style("noto", "Google", pretrained=True),
        Style("twemoji", "Twitter", pretrained=True),
        Style("fluent", "Microsoft"),
        Style("emojione", "Emoji One"),
        Style("openmoji", "OpenMoji"),
        Style("noto-v1", "Google", several=True),
        Style("fluent-color", "Microsoft", several=True),
    )
}
# Of the data sets ``emoji_GROUP``.
ONE_DRAWING = tuple(name for name, style in STYLES.items() if not style.several)


@dataclass(frozen=True)
class Emoji:
    """One emoji: code points in hexadecimal, joined by ``-``; CLDR short name; group.

    ``everywhere`` says that all styles of ``ONE_DRAWING`` draw it: then it is a class of its group's data set;
    ``several``, that all others do too: then it is one of the group's data set with several drawings.
    """

    code: str
    name: str
    group: str
    everywhere: bool
    several: bool


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


def classes(group: str, *, several: bool = False) -> tuple[Emoji, ...]:
    """The emoji of ``group`` that every style of ``ONE_DRAWING`` draws, in alphabetical order of their names.

    With ``several`` those that every style draws.
    """
    check_choice("group", group, GROUPS)
    return tuple(
        emoji for emoji in catalogue() if emoji.group == group and (emoji.several if several else emoji.everywhere)
    )


@cache
def drawings(style: str) -> dict[str, np.ndarray]:
    """Code -> drawing, uint8 [48, 48, 4] with straight alpha; read only.

    Raises:
        InputError: unknown style, or an atlas that is missing or damaged.
    """
    check_choice("style", style, STYLES)
    drawn = [emoji for emoji in catalogue() if STYLES[style].draws(emoji.everywhere, emoji.several)]
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
