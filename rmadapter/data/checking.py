"""What is there of the field's data sets, and whether it is what was published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rmadapter.data.catalog import CATALOG, DataSet
from rmadapter.data.items import ImageData
from rmadapter.data.named import has_layout, load_named
from rmadapter.data.published_counts import counted, differences, is_published, published
from rmadapter.data.splits import MissingImagesError
from rmadapter.errors import InputError, check_choice


@dataclass(frozen=True)
class Checked:
    """One data set as found.

    Attributes:
        name: in the catalog.
        there: whether its image folder is.
        error: why it cannot be used, or None.
        found, published: counts by what is counted; of images that are missing too; empty where nothing could be read.
        split: the split file's name and the first digits of its SHA-256, or what stands in for it.
        notes: sentences of the loader.
    """

    name: str
    there: bool
    error: str | None = None
    found: dict[str, int] = field(default_factory=dict)
    published: dict[str, int] = field(default_factory=dict)
    split: str = ""
    notes: tuple[str, ...] = ()

    @property
    def differences(self) -> dict[str, tuple[int, int]]:
        """(found, published) where they differ."""
        return differences(self.found, self.published)


def check(names: Sequence[str], data_root: Path) -> list[Checked]:
    """Load each data set of ``names`` (all of the catalog where there are none) that is in ``data_root``, and count."""
    for name in names:
        check_choice("data", name, CATALOG)
    if not data_root.is_dir():
        raise InputError(f"data_root is {str(data_root)!r}, which is no folder")
    return [_check(CATALOG[name], data_root) for name in names or CATALOG]


def _check(record: DataSet, data_root: Path) -> Checked:
    if not has_layout(data_root, record):
        return Checked(record.name, there=False)
    folder = (data_root / record.folder).absolute()
    error = None
    try:
        data = load_named(folder, record)
    except MissingImagesError as missing:
        data, error = missing.data, str(missing)
    except InputError as unusable:
        return Checked(record.name, there=True, error=str(unusable))
    found, wanted = counted(record, data), published(record)
    return Checked(record.name, True, error, found, wanted, _split(record, data), data.notes)


def _split(record: DataSet, data: ImageData) -> str:
    if data.split_file is None:
        return "its own lists and folders" if data.own_lists else "made here and not kept"
    verified = is_published(data.split_file, record)
    if data.split_file.name != record.split_file or verified is False:  # a note says so
        return str(data.split_id)
    return f"{data.split_id} ({'as published' if verified else 'not verified: the published hash is not known here'})"


def describe(checked: Sequence[Checked]) -> str:
    """One paragraph a data set."""
    blocks = []
    for one in checked:
        if not one.there:
            record = CATALOG[one.name]
            blocks.append(f"{one.name}: not there ({record.folder}/{record.layout_marker})")
            continue
        lines = [f"{one.name}: {'differs from what was published' if one.differences else 'as published'}"]
        if one.error:
            lines = [f"{one.name}: cannot be used: {one.error}"]
        counts = ", ".join(
            f"{key} {count:,}" + (f" (published {one.published[key]:,})" if key in one.differences else "")
            for key, count in one.found.items()
        )
        if counts:
            lines += [f"  {counts}", f"  split: {one.split}", *(f"  {note}" for note in one.notes)]
        blocks.append("\n".join(lines))
    return "\n".join(blocks)
