"""The field's data sets in their own layouts: found by name or folder, read with the public split or one made here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rmadapter.data.catalog import CATALOG, DataSet
from rmadapter.data.items import ImageData, Item
from rmadapter.data.published_counts import unlike_published
from rmadapter.data.readers import READERS
from rmadapter.data.splits import (
    OWN_FILE,
    MissingImagesError,
    checked_names,
    missing_images,
    read_split,
    repeated_names,
    save_split,
)


def find_named(data: str, data_root: str | None) -> tuple[Path, DataSet] | None:
    """Folder and record where ``data`` means one of the field's data sets and it has the field's layout.

    ``data`` is a name of the catalog, in ``data_root``, or the data set's folder itself. A folder that is a link stays
    where the link is: what belongs beside a data set is beside it there.
    """
    if data in CATALOG and data_root is not None and has_layout(Path(data_root), CATALOG[data]):
        return (Path(data_root) / CATALOG[data].folder).absolute(), CATALOG[data]
    path = find_folder(data, data_root)
    if path is not None:
        for folder in (path.absolute(), path.resolve()):  # the link's own name, then that of what it leads to
            for record in CATALOG.values():
                if folder.name == record.folder and has_layout(folder.parent, record):
                    return folder, record
    return None


def find_folder(data: str, data_root: str | None) -> Path | None:
    """The folder that ``data`` means; None where there is none.

    That in ``data_root`` comes first: in the working folder a run may lie under the data set's name. What begins with
    "./" or "../" is looked for in the working folder first.
    """
    places = [Path(data)]
    if data_root:
        places.insert(data.partition("/")[0] in (".", ".."), Path(data_root) / data)
    return next((place for place in places if place.is_dir()), None)


def has_layout(data_root: Path, record: DataSet) -> bool:
    """Whether the data set's images are where the field keeps them."""
    return (data_root / record.folder / record.layout_marker).is_dir()


def split_file_of(folder: Path, record: DataSet) -> Path | None:
    """The public split file, else one made here, else None."""
    names = [record.split_file, OWN_FILE] if record.split_file else []
    return next((folder / name for name in names if (folder / name).is_file()), None)


def load_named(folder: Path, record: DataSet) -> ImageData:
    """The data set of ``record`` in ``folder``; with a split made here, which a note says, where its file is missing.

    Raises:
        InputError: a damaged split file or one that names missing images, missing or damaged annotation files,
            fewer than two classes, a class without images, images that the annotations name but that are missing.
    """
    images = folder / record.images
    split_file = split_file_of(folder, record)
    if split_file is not None:
        data = read_split(images, split_file)
        data = dataclasses.replace(data, name=record.name)
        if split_file.name != OWN_FILE:
            return say_unlike_published(record, data)
        found = f"{_no_public_split(folder, record)}; it is {split_file}"
        return dataclasses.replace(data, notes=(found, *data.notes))
    split = READERS[record.reader](folder, record)
    items = [*split.train, *split.val, *split.test]
    names = checked_names(f"data set {folder}", split.train, items, trains=not record.test_only)
    data = ImageData(
        record.name,
        images,
        split.train,
        split.val,
        split.test,
        None,
        repeated_names(names),
        own_lists=split.made is None,
    )
    if not split.listed:
        _check_there(data, items, folder)
    if split.made is None:
        return say_unlike_published(record, data)
    file, made = save_split(folder, split.train, split.val, split.test, split.made)
    note = f"{_no_public_split(folder, record)}; {made}"
    return dataclasses.replace(data, split_file=file, notes=(note, *data.notes))


def say_unlike_published(record: DataSet, data: ImageData) -> ImageData:
    """``data``, with a note where it passes for the published ``record`` by its split file or lists, and is not."""
    why = unlike_published(record, data)
    if why is None:
        return data
    note = f"{record.name} is not as published: {why}; accuracies on it do not compare with published ones"
    return dataclasses.replace(data, notes=(note, *data.notes))


def _no_public_split(folder: Path, record: DataSet) -> str:
    return (
        f"{record.name}: {record.split_file} is missing from {folder}, so that accuracies on a split made here do not "
        "compare with published ones"
    )


def _check_there(data: ImageData, items: list[Item], folder: Path) -> None:
    """Raise MissingImagesError where annotation files name images that are not there; the first ten are named."""
    missing = missing_images(data.root, items)
    if missing:
        raise MissingImagesError(
            f"the annotation files in {folder} name {len(missing)} images that are not in {data.root}: "
            f"{', '.join(missing[:10])}",
            data,
        )
