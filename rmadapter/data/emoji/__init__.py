"""The bundled data sets: emoji as five vendors draw them, rendered to pictures when they are read.

Here are the drawings (``files/``), what is made of them and the training options that suit them; how the files were
made, and experiments on them, are ``rmadapter.testbed``'s.
"""

from __future__ import annotations

from pathlib import Path

PREFIX = "emoji_"
GROUPS = ("animals", "food", "objects", "travel", "activities", "people", "symbols")
DATA = tuple(f"{PREFIX}{group}" for group in GROUPS)
DEFAULT_STYLE = "fluent"
TRAIN_CONFIG = Path(__file__).parent / "train.yaml"


def is_testbed(data: str) -> bool:
    """Whether ``data`` is the name of a bundled data set, and no folder is called so."""
    return data in DATA and not Path(data).is_dir()
