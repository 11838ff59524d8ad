"""What the demo and the tests run on without a download: real images and a small CLIP trained on the spot.

Both are folders that appear whole or not at all and say in a marker file what they were made from, so
that a second call finds them and a stopped one leaves nothing half-written.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rmadapter.errors import InputError


def is_made(folder: Path, marker: str, content: dict[str, Any]) -> bool:
    """Whether ``folder`` is there and its ``marker`` file says it was made from ``content``.

    Raises:
        InputError: the folder is there without a readable marker: it may be the user's own.
    """
    if not folder.exists():
        return False
    try:
        return json.loads((folder / marker).read_text(encoding="utf-8")) == content
    except (OSError, ValueError):
        raise InputError(
            f"{folder} is there but was not made by rmadapter (no readable {marker} in it); "
            "name another output folder or move it away"
        ) from None


@contextmanager
def making(folder: Path, marker: str, content: dict[str, Any]) -> Iterator[Path]:
    """A temporary folder to fill, renamed to ``folder`` with its marker at the end, removed on an exception."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield unfinished
        (unfinished / marker).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        unfinished.chmod(0o755)  # mkdtemp's 0700 would shut out the group
        if folder.exists():
            shutil.rmtree(folder)  # a rename does not replace a folder that holds files
        os.replace(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
