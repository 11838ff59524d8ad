"""The data sets ``emoji_GROUP``: seeded renderings of one style's drawings, made when they are read.

A class is an emoji of the group that five vendors draw, in alphabetical order of its CLDR short name. Its images
are renderings of its one drawing, so base accuracy is that on held-out renderings of drawings seen in training; what
adaptation leaves of the rest shows on new classes and, as ``retention``, on another vendor's drawings. A rendering's
place, turn, light, background and noise depend on (part, emoji, number) alone: the same in every style.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from rmadapter.data.emoji import DATA, DEFAULT_STYLE, PREFIX
from rmadapter.data.emoji.atlas import FILES, ONE_DRAWING, Emoji, classes, drawings
from rmadapter.data.emoji.rendering import Variations, render
from rmadapter.data.items import ImageData, Item
from rmadapter.errors import check_choice

COUNTS = {"train": 32, "val": 4, "test": 10}  # renderings a class
# What knowledge is left is measured on the vendor that neither pretraining nor training has seen.
RETENTION_STYLE = {style: "emojione" if style == "fluent" else "fluent" for style in ONE_DRAWING}


def load_emoji(data: str, style: str | None = None, *, retention: bool = True) -> ImageData:
    """The data set ``emoji_GROUP`` in one style, with that in the unseen style as its ``retention``.

    Raises:
        InputError: unknown group or style, or an atlas that is missing or damaged.
    """
    check_choice("data", data, DATA)
    style = DEFAULT_STYLE if style is None else style
    check_choice("style", style, ONE_DRAWING)
    drawings(style)  # a damaged atlas is reported before any work
    unseen = load_emoji(data, RETENTION_STYLE[style], retention=False) if retention else None
    shown = dict.fromkeys(COUNTS, (style,))
    return rendered(data, style, shown, classes(data.removeprefix(PREFIX)), unseen)


def rendered(
    data: str, style: str, shown: Mapping[str, Sequence[str]], emoji: Sequence[Emoji], unseen: ImageData | None
) -> ImageData:
    """The data set ``data`` of style ``style``: renderings of ``emoji``, in turn of the styles ``shown`` in each part.

    Args:
        shown: train, val and test -> those styles.
        unseen: what becomes its ``retention``.
    """
    items = {
        part: [
            Item(f"{styles[number % len(styles)]}/{part}/{one.code}/{number:02}", label, one.name)
            for label, one in enumerate(emoji)
            for number in range(COUNTS[part])
        ]
        for part, styles in shown.items()
    }
    return ImageData(
        data,
        FILES,
        items["train"],
        items["val"],
        items["test"],
        None,
        reader=read_rendering,
        style=style,
        max_shots=COUNTS["train"],
        retention=unseen,
    )


def read_rendering(path: str) -> Image.Image:
    """The rendering ``STYLE/PART/CODE/NUMBER``, 48 x 48 RGB."""
    style, part, code, number = path.split("/")
    return Image.fromarray(_pixels(style, part, code, int(number)))


# A picture takes 7 KB and 0.7 ms. A seed of a sweep over six groups reads 23,000 of them (the test in two styles and 16
# shots), which the next seed reads again; all that ten seeds in two styles read are 43,000.
@lru_cache(maxsize=49152)
def _pixels(style: str, part: str, code: str, number: int) -> np.ndarray:
    points = [int(point, 16) for point in code.split("-")]
    generator = np.random.default_rng(np.random.SeedSequence([list(COUNTS).index(part), number, *points]))
    drawing = torch.from_numpy(drawings(style)[code].copy()).permute(2, 0, 1)[None].float() / 255
    picture = render(drawing, Variations.draw(generator))[0].permute(1, 2, 0).numpy()
    picture.setflags(write=False)
    return picture
