"""The test bed that ships with the package: emoji drawn by five vendors, and a small CLIP that knows two of them.

``rmadapter train --data emoji_food --style fluent`` runs on it without a download.
"""

from __future__ import annotations

from pathlib import Path

PREFIX = "emoji_"
GROUPS = ("animals", "food", "objects", "travel", "activities", "people", "symbols")
DATA = tuple(f"{PREFIX}{group}" for group in GROUPS)
DEFAULT_STYLE = "fluent"
MODEL = "emoji-clip"
TRAIN_CONFIG = Path(__file__).parent / "train.yaml"


def brings_weights(model: str) -> bool:
    """Whether ``model`` has weights without ``--pretrained``: the bundled one, local-dir:FOLDER, hf-hub:ORG/NAME."""
    return model == MODEL or ":" in model


def is_testbed(data: str) -> bool:
    """Whether ``data`` means a bundled data set, spelt rightly or not, and not a folder."""
    return data.startswith(PREFIX) and not Path(data).is_dir()
