"""The bundled data sets: emoji as vendors draw them, rendered to pictures when they are read.

There are two kinds. Of ``emoji_GROUP`` a class is one drawing; of ``drawings_GROUP`` it is the drawings of several
vendors, trained on some and tested on another. Here are the drawings (``files/``), what is made of them and the
training options that suit them; how the files were made, and experiments on them, are ``rmadapter.testbed``'s.
"""

from __future__ import annotations

from pathlib import Path

PREFIX, DRAWINGS_PREFIX = "emoji_", "drawings_"
GROUPS = ("animals", "food", "objects", "travel", "activities", "people", "symbols")
DATA = tuple(f"{PREFIX}{group}" for group in GROUPS)
DRAWINGS = tuple(f"{DRAWINGS_PREFIX}{group}" for group in GROUPS)
BUNDLED = (*DATA, *DRAWINGS)
DEFAULT_STYLE = "fluent"
TRAIN_CONFIG = Path(__file__).parent / "train.yaml"


def is_testbed(data: str) -> bool:
    """Whether ``data`` is the name of a bundled data set, and no folder is called so."""
    return data in BUNDLED and not Path(data).is_dir()
