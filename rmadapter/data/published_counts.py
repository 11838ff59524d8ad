"""Whether a data set is the published one: its split file's hash where that is known, and its numbers of images."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rmadapter.data.catalog import DataSet
from rmadapter.data.items import PARTS, ImageData
from rmadapter.data.sampling import base_new_split


def published(record: DataSet) -> dict[str, int]:
    """Numbers of classes, of images in each part, and of test images of the base and new classes where published."""
    counts = {"classes": record.classes, "train": record.train, "val": record.val, "test": record.test}
    if record.base_new_test is not None:
        counts |= dict(zip(("test base", "test new"), record.base_new_test, strict=True))
    return counts


def counted(record: DataSet, data: ImageData) -> dict[str, int]:
    """What ``data`` has of ``published``."""
    classes = len(data.class_names)
    counts = {"classes": classes, **{part: len(getattr(data, part)) for part in PARTS}}
    if record.base_new_test is not None:
        counts |= {f"test {half}": len(base_new_split(data.test, half, classes)) for half in ("base", "new")}
    return counts


def differences(found: dict[str, int], wanted: dict[str, int]) -> dict[str, tuple[int, int]]:
    """(found, published) where they differ."""
    return {key: (count, wanted[key]) for key, count in found.items() if key in wanted and count != wanted[key]}


def unlike_published(record: DataSet, data: ImageData) -> str | None:
    """Why ``data``, by its file's name or its lists the published one, is not; None where nothing tells it."""
    if data.split_file is not None and is_published(data.split_file, record) is False:
        return f"the SHA-256 of {data.split_file} is not that of the published file"
    counts = differences(counted(record, data), published(record))
    if not counts:
        return None
    return ", ".join(f"{key} {found:,} (published {wanted:,})" for key, (found, wanted) in counts.items())


def is_published(file: Path, record: DataSet) -> bool | None:
    """Whether ``file`` has the hash of the published split file; None where that hash is not known."""
    if record.split_sha256 is None:
        return None
    return hashlib.sha256(file.read_bytes()).hexdigest() == record.split_sha256
