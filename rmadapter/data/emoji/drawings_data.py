"""The data sets ``drawings_GROUP``: each class in the drawings of several vendors, tested on another vendor's.

A class is an emoji of the group that all styles draw. The style of such a data set is whose drawings it is tested on;
it is trained on those of other vendors, and on none that pretraining has seen. So a test image shows no drawing that
training has shown: base accuracy too is of what is known of a thing, not of renderings of a picture.
"""

from __future__ import annotations

from rmadapter.data.emoji import DEFAULT_STYLE, DRAWINGS, DRAWINGS_PREFIX
from rmadapter.data.emoji.atlas import STYLES, classes, drawings
from rmadapter.data.emoji.emoji_data import rendered
from rmadapter.data.items import ImageData
from rmadapter.errors import check_choice

# OpenMoji's outlines are the style that nobody has seen, and to be trained on by none.
_TRAINABLE = ("fluent", "fluent-color", "noto-v1", "emojione")


def unseen_style(style: str) -> str:
    """Where what knowledge is left is measured, after training for ``style``."""
    return "emojione" if style == "openmoji" else "openmoji"


def trained_styles(style: str) -> tuple[str, ...]:
    """Whose drawings are trained on where ``style`` is tested: those of other vendors, and not the unseen style."""
    vendors = {STYLES[style].vendor, STYLES[unseen_style(style)].vendor}
    return tuple(name for name in _TRAINABLE if STYLES[name].vendor not in vendors)


def load_drawings(data: str, style: str | None = None, *, retention: bool = True) -> ImageData:
    """The data set ``drawings_GROUP`` tested in ``style``, with its test in the unseen style as its ``retention``.

    The renderings for training, and for validation, are of one trained style after the other.

    Raises:
        InputError: unknown group or style, or an atlas that is missing or damaged.
    """
    check_choice("data", data, DRAWINGS)
    style = DEFAULT_STYLE if style is None else style
    check_choice("style", style, STYLES)
    shown = {"train": trained_styles(style), "val": trained_styles(style), "test": (style,)}
    for name in {name for names in shown.values() for name in names}:
        drawings(name)  # a damaged atlas is reported before any work
    unseen = load_drawings(data, unseen_style(style), retention=False) if retention else None
    return rendered(data, style, shown, classes(data.removeprefix(DRAWINGS_PREFIX), several=True), unseen)
