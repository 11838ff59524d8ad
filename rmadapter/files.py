"""Files that are either whole or not there: written beside their place and renamed into it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rmadapter.errors import InputError


def cache_folder(cache_dir: str | None, kind: str) -> Path:
    """Where caches of one kind ("views", "images") are kept: below --cache-dir, or in the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir) / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rmadapter" / kind


def shown_names(folder: Path) -> list[str]:
    """Sorted names of what is in ``folder``, without what is hidden, such as a temporary file that a kill has left."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a temporary name in the folder of ``path`` (made if missing), flush, and rename.

    Raises:
        InputError: the folder cannot be made or written, or the disk is full; nothing is left behind and a file
            that was there stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        usual_mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(usual_mode)  # safetensors makes its files readable by their owner alone
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """``text`` in UTF-8, atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """``content`` as it is, atomically."""
    write_atomic(path, lambda temporary: temporary.write_bytes(content))


def write_json(path: Path, values: Any) -> None:
    """Indented JSON, atomically."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Lines of comma-separated values, atomically; None is an empty cell, numbers have full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_json(path: Path, what: str) -> Any:
    """The JSON in ``path``; ``what`` names the file's role in messages.

    Raises:
        InputError: no such file, unreadable, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{what} {path} is missing") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{what} {path} cannot be read: {error}") from error


def plain_name(text: str, longest: int = 80) -> str:
    """``text`` as a part of a file's name: letters, digits and ``._+=-``, anything else is a dash."""
    return re.sub(r"[^\w.+=-]+", "-", text).strip("-.")[:longest] or "unnamed"
