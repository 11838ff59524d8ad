"""Files that are either whole or not there: written beside their place and renamed into it."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import math
import os
import re
import reprlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rmadapter.errors import InputError, reason

# One of no other process, on this machine or on another that shares the folder; as long for any file, since names
# have a longest length.
_TEMPORARY = re.compile(r"\.rmadapter-[0-9a-f]{32}\.tmp")
# A temporary that nobody has written to for so long was left by a process that was killed.
LEFT_AFTER_SECONDS = 24 * 3600
# A list of every image of ImageNet has 150 MB.
LARGEST_TEXT = 256 << 20


def cache_folder(cache_dir: str | None, kind: str) -> Path:
    """Where caches of one kind ("views", "images") are kept: below --cache-dir, or in the user's cache folder.

    Raises:
        InputError: there is no --cache-dir, and no home folder for the user's.
    """
    if cache_dir is not None:
        return Path(cache_dir) / kind
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():  # which the standard for this variable asks for; a "~" in it is not expanded
        try:
            caches = Path.home() / ".cache"
        except RuntimeError as error:
            raise InputError("cache_dir is None, and this user has no home folder; valid: --cache-dir DIR") from error
    return caches / "rmadapter" / kind


def check_folder_name(field: str, folder: str | Path) -> None:
    """Raise InputError where ``folder`` cannot be made, since it or one above it is a file; ``field`` names it."""
    there = _existing(folder)
    if not os.path.isdir(there):
        what = "which" if there == Path(folder) else f"but {str(there)!r}"
        raise InputError(f"{field} is {str(folder)!r}, {what} is a file; valid: a folder")


def check_may_write(field: str, folder: str | Path) -> None:
    """Raise InputError where this user may not put a file into ``folder``, or make it; ``field`` names it."""
    there = _existing(folder)
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        what = "which" if there == Path(folder) else f"but {str(there)!r}"
        raise InputError(f"{field} is {str(folder)!r}, {what} may not be written; valid: a folder that can be written")


def _existing(folder: str | Path) -> Path:
    """``folder``, or the nearest one above it that is there."""
    return next(path for path in (Path(folder), *Path(folder).parents) if os.path.exists(path))


def check_file_name(field: str, file: str | Path) -> None:
    """Raise InputError where ``file`` cannot be written, since it is a folder or a device, or one above it is a file.

    A device would not be written to but replaced, by root. So would /dev/stdout, a link, wherever it leads.
    """
    file = Path(file)
    if os.path.isdir(file):
        raise InputError(f"{field} is {str(file)!r}, which is a folder; valid: a file")
    if os.path.dirname(os.path.abspath(file)) == "/dev" or (os.path.exists(file) and not os.path.isfile(file)):
        raise InputError(f"{field} is {str(file)!r}, which is no regular file; valid: a file")
    check_folder_name(f"the folder of {field}", file.parent)


def shown_names(folder: Path) -> list[str]:
    """Sorted names of what is in ``folder``, without what is hidden, such as a temporary file that a kill has left."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a temporary name in the folder of ``path`` (made if missing), flush, and rename.

    Raises:
        InputError: the folder cannot be made or written, or the disk is full; nothing is left behind and a file
            that was there stays as it was.
    """
    temporary = path.with_name(f".rmadapter-{uuid.uuid4().hex}.tmp")
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
        raise InputError(f"{path} cannot be written: {reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def is_temporary(name: str) -> bool:
    """Whether ``name`` is one that ``write_atomic`` gives to a file before it is whole."""
    return _TEMPORARY.fullmatch(name) is not None


def clear_temporaries(folder: Path) -> None:
    """Delete from ``folder`` what ``write_atomic`` began there and killed processes left.

    A temporary counts as left once nobody has written to it for a day. Other files stay, and so does what may not be
    deleted; sub-folders are not looked into.
    """
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if is_temporary(path.name):
                with contextlib.suppress(OSError):
                    if time.time() - path.lstat().st_mtime > LEFT_AFTER_SECONDS:
                        path.unlink()


def write_text(path: Path, text: str) -> None:
    """``text`` in UTF-8, atomically.

    What UTF-8 has no form for, bytes of a file name that is not UTF-8, is written as ``\\udcff``: as JSON has it.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """``content`` as it is, atomically."""
    write_atomic(path, lambda temporary: temporary.write_bytes(content))


def write_json(path: Path, values: Any) -> None:
    """Indented JSON, atomically.

    Raises:
        InputError: a number that is not finite, which JSON has no form for; the message names its place.
    """
    try:
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        for place, number in _not_finite(values, ""):
            raise InputError(f"{path} cannot be written: {place} is {number}; valid: a finite number") from error
        raise
    write_text(path, text + "\n")


def _not_finite(values: Any, place: str) -> Iterator[tuple[str, float]]:
    """Place, such as ``accuracy.base`` or ``losses[3]``, and value of every number in ``values`` that is not finite."""
    if isinstance(values, float) and not math.isfinite(values):
        yield place, values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _not_finite(value, f"{place}.{key}" if place else str(key))
    elif isinstance(values, (list, tuple)):
        for number, value in enumerate(values):
            yield from _not_finite(value, f"{place}[{number}]")


def write_csv(path: Path, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Lines of comma-separated values, atomically; None is an empty cell, numbers have full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_bytes(path: Path, what: str, *, limit: int = LARGEST_TEXT) -> bytes:
    """What is in ``path``, which ``what`` names in messages; for files that are held in memory as a whole.

    Raises:
        InputError: no such file, unreadable, or larger than ``limit`` bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError as error:
        raise InputError(f"{what} {path} is missing") from error
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {reason(error)}") from error
    if len(content) > limit:
        raise InputError(f"{what} {path} is larger than {limit >> 20} MB; valid: one of the size that such files have")
    return content


def read_text(path: Path, what: str, *, limit: int = LARGEST_TEXT) -> str:
    """The text in ``path`` as editors write it: UTF-8, or UTF-16 with a byte order mark; lines end in ``\\n`` alone.

    Raises:
        InputError: as ``read_bytes``; another encoding (the first line that is in it is named), or no text.
    """
    content = read_bytes(path, what, limit=limit)
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        before, byte = error.object[: error.start], error.object[error.start]
        line = before.decode(encoding, errors="ignore").count("\n") + 1
        asked = encoding.removesuffix("-sig").upper()
        raise InputError(
            f"{what} {path} cannot be read: byte 0x{byte:02x} in line {line} is not {asked}; it may be in Latin-1, "
            "Windows-1252 or another older encoding; valid: text in UTF-8, or in UTF-16 with a byte order mark"
        ) from error
    if "\0" in text:
        raise InputError(
            f"{what} {path} cannot be read: it holds NUL bytes, as no text does but UTF-16 without a byte order mark; "
            "valid: text in UTF-8, or in UTF-16 with the mark"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, what: str, *, limit: int = LARGEST_TEXT, valid: str = "") -> Any:
    """The JSON in ``path``; ``what`` names the file's role in messages, and ``valid`` ends that on what is no JSON.

    Raises:
        InputError: as ``read_text``; not JSON, which NaN and infinity are not, or lists in lists without end.
    """
    text = read_text(path, what, limit=limit)
    try:
        return json.loads(text, parse_constant=_no_json)
    except RecursionError as error:
        raise InputError(f"{what} {path} cannot be read: it holds too many lists or objects in one another") from error
    except ValueError as error:  # a JSONDecodeError, or of a number with thousands of digits
        raise InputError(f"{what} {path} cannot be read: {error}{valid and f'; {valid}'}") from error


def read_object(path: Path, what: str, fields: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """The JSON object in ``path`` with ``fields`` of these types.

    Raises:
        InputError: as ``read_json``; no object, a field that is missing or of another type.
    """
    values = read_json(path, what)
    if not isinstance(values, dict):
        raise InputError(f"{what} {path} holds no JSON object")
    for name, kinds in fields.items():
        if not isinstance(values.get(name), kinds):
            raise InputError(f"{what} {path} is damaged: {name} is {reprlib.repr(values.get(name))}")
    return values


def _no_json(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which JSON does not have")


def reserve(file: BinaryIO, size: int) -> None:
    """Give the empty ``file`` ``size`` bytes of zeros that have their place on the disk; OSError where it is full."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, 2**20):
        file.write(bytes(min(2**20, size - start)))
    file.flush()


def plain_name(text: str, longest: int = 80) -> str:
    """``text`` as a part of a file's name: letters, digits and ``._+=-``, anything else is a dash."""
    return re.sub(r"[^\w.+=-]+", "-", text).strip("-.")[:longest] or "unnamed"
