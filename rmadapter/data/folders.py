"""Data sets from folders of images, with a split file or without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from rmadapter.data.catalog import CATALOG, DataSet, record_of
from rmadapter.data.emoji import DATA, is_testbed
from rmadapter.data.items import ImageData, Item
from rmadapter.data.named import find_named, from_home, load_named
from rmadapter.data.splits import find_split_file, make_split, read_split, save_split
from rmadapter.errors import InputError, nearest

CLASS_NAMES_FILE = "classnames.txt"


def load_data(data: str, data_root: str | None = None, style: str | None = None) -> ImageData:
    """The data set in folder ``data``, or in the folder ``data`` of ``data_root``, or a bundled one in ``style``.

    One of the field's data sets, by its name or by its folder, is read in the layout that the field keeps it in
    (``catalog``), where it has that layout; any other folder as follows.

    The folder holds one folder of images a class, or ``train/``, ``test/`` and maybe ``val/`` with one each.
    A split file in it (``split_*.json``) says which image belongs where; without one a split is made and written
    there. Class names come from ``classnames.txt``, else from the class folders with spaces for underscores;
    labels are in the order of the sorted class folders.

    Raises:
        InputError: no such folder, fewer than two classes, a class without images, a split file that is damaged,
            ambiguous, leaves the folder or names images that are not there; an unknown group or style of the
            bundled data sets, or a style for others.
    """
    if data_root is None and is_testbed(data):
        from rmadapter.data.emoji.emoji_data import load_emoji

        return load_emoji(data, style)
    if style is not None:
        raise InputError(
            f"style is {style!r}, but data is {data!r}; valid: with the bundled data sets alone, {', '.join(DATA)}"
        )
    data = from_home(data)
    data_root = None if data_root is None else from_home(data_root)
    if (found := find_named(data, data_root)) is not None:
        return load_named(*found)
    root = _find(data, data_root)
    record = record_of(data) or record_of(root.name)
    return _load_folder(root) if record is None else _load_without_layout(root, record)


def _load_without_layout(root: Path, record: DataSet) -> ImageData:
    """The plain folder of images ``root``, which is called like one of the field's data sets; messages say so."""
    try:
        data = _load_folder(root)
    except InputError as error:
        raise InputError(
            f"{error}; the field's {record.name} lies in {record.folder}/{record.layout_marker} of data_root; "
            f"rmadapter datasets download {record.name} --data-root DIR gets it or says how"
        ) from error
    if data.split_file is not None and data.split_file.name == record.split_file:
        return data  # The public split names images, classes and parts, wherever the class folders lie.
    note = (
        f"{root} is read as a plain folder of images: it has not the layout of the field's {record.name} "
        f"({record.folder}/{record.layout_marker}), so that class names and split are not the published ones"
    )
    return replace(data, notes=(note, *data.notes))


def _load_folder(root: Path) -> ImageData:
    split_file = find_split_file(root)
    if split_file is not None:
        return read_split(root, split_file)
    if _has_folders(root / "train"):
        return _from_parts(root)
    classes = _class_folders(root)
    names = _class_names(root, list(classes))
    images = [
        [Item(path, label, name) for path in paths]
        for label, (name, paths) in enumerate(zip(names, classes.values(), strict=True))
    ]
    train, val, test = make_split(images)
    file, note = save_split(root, train, val, test)
    return ImageData(root.name, root, train, val, test, file, (note,))


def _find(data: str, data_root: str | None) -> Path:
    for path in (Path(data), Path(data_root) / data if data_root else None):
        if path is not None and path.is_dir():
            return path.resolve()
    if data_root is not None and not Path(data_root).is_dir():
        raise InputError(f"data_root is {data_root!r}, which is no folder")
    base = Path(data_root) if data_root else Path(data).parent
    folders = sorted(p.name for p in base.iterdir() if p.is_dir()) if base.is_dir() else []
    where = f"neither a folder nor one in {data_root!r}" if data_root else "no folder"
    hint = ""
    if data in CATALOG:
        record = CATALOG[data]
        hint = (
            f"; {data} lies in {record.folder}/{record.layout_marker} of data_root, or in {data}/ with one folder of "
            f"images a class; rmadapter datasets download {data} --data-root DIR gets it or says how"
        )
    close = "" if hint else nearest(Path(data).name, [*folders, *CATALOG])
    raise InputError(f"data is {data!r}, which is {where}{close}{hint}")


def _has_folders(folder: Path) -> bool:
    """Whether this is a part of a data set, with class folders in it, and not a class with images."""
    return folder.is_dir() and any(path.is_dir() for path in folder.iterdir())


def _from_parts(root: Path) -> ImageData:
    if not (root / "test").is_dir():
        raise InputError(f"{root} has train/ but no test/; valid: both, with the same class folders, and maybe val/")
    parts = {part: _class_folders(root / part) for part in ("train", "val", "test") if (root / part).is_dir()}
    classes = list(parts["train"])
    for part, found in parts.items():
        odd = sorted(set(found) ^ set(classes))
        if odd:
            raise InputError(
                f"{root}: class folder {odd[0]!r} is in only one of train and {part}; valid: the same in each"
            )
    names = _class_names(root, classes)
    items = {
        part: [
            Item(f"{part}/{path}", label, name)
            for label, (folder, name) in enumerate(zip(classes, names, strict=True))
            for path in found[folder]
        ]
        for part, found in parts.items()
    }
    return ImageData(root.name, root, items["train"], items.get("val", []), items["test"], None)


def _class_folders(root: Path) -> dict[str, list[str]]:
    """Class folder -> its images' paths from ``root``, both sorted."""
    folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(folders) < 2:
        raise InputError(
            f"{root} has {len(folders)} class folders; valid: two or more, with the images of a class in each"
        )
    found = {}
    for folder in folders:
        paths = (p.relative_to(root) for p in (root / folder).rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
        # What is hidden is no image: a Mac leaves ._00.jpg beside 00.jpg.
        found[folder] = sorted(p.as_posix() for p in paths if not any(part.startswith(".") for part in p.parts))
        if not found[folder]:
            raise InputError(f"class folder {root / folder} has no images; valid endings: {' '.join(IMG_EXTENSIONS)}")
    return found


def _class_names(root: Path, folders: list[str]) -> list[str]:
    path = root / CLASS_NAMES_FILE
    if not path.is_file():
        return [folder.replace("_", " ") for folder in folders]
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    by_folder = dict(line.split(maxsplit=1) for line in lines if len(line.split(maxsplit=1)) == 2)
    if len(by_folder) == len(lines) and all(folder in by_folder for folder in folders):
        return [by_folder[folder] for folder in folders]
    if len(lines) != len(folders):
        raise InputError(
            f"{path} has {len(lines)} lines for {len(folders)} class folders; valid: 'folder name' for every folder, "
            "or one name a line in the order of the sorted folders"
        )
    return lines
