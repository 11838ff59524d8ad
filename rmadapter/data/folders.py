"""Data sets from folders of images, with a split file or without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rmadapter.data.catalog import CATALOG, DataSet, record_of
from rmadapter.data.class_folders import ClassFolders, check_text, find_classes
from rmadapter.data.class_names import CLASS_NAMES_FILE, by_number, class_names, some
from rmadapter.data.emoji import BUNDLED, DATA, is_testbed
from rmadapter.data.items import ImageData, Item
from rmadapter.data.named import find_folder, find_named, load_named, say_unlike_published
from rmadapter.data.part_folders import Parts, find_parts
from rmadapter.data.splits import OWN_FILE, find_split_file, make_split, read_split, repeated_names, save_split
from rmadapter.errors import InputError, nearest


def load_data(data: str, data_root: str | None = None, style: str | None = None) -> ImageData:
    """The data set in the folder ``data`` of ``data_root``, or in folder ``data``, or a bundled one in ``style``.

    One of the field's data sets, by its name or by its folder, is read in the layout that the field keeps it in
    (``catalog``), where it has that layout; any other folder as follows.

    The folder holds one folder of images a class (``class_folders``), or its parts in folders with one each
    (``part_folders``). A split file in it (``split_*.json``) says which image belongs where; without one a split is
    made and written there. Class names come from ``classnames.txt`` (``class_names``), else from the class folders with
    spaces for underscores; labels are in the order of the class folders, sorted as text.

    Validation images that are test images too are left out, and a note says so: nothing may be chosen by those.

    Raises:
        InputError: no such folder; what ``find_classes``, ``find_parts`` and ``class_names`` raise; a split file that
            is damaged, ambiguous, leaves the folder or names images that are not there, or that was made before images
            were added or class names changed; an unknown style of the bundled data sets, or a style for others.
    """
    found = _find_data(data, data_root, style)
    tested = {item.path for item in found.test}
    val = [item for item in found.val if item.path not in tested]
    if len(val) == len(found.val):
        return found
    left_out = len(found.val) - len(val)
    note = f"{left_out} validation images are test images too, and nothing is chosen or calibrated by them"
    return replace(found, val=val, notes=(*found.notes, note))


def _find_data(data: str, data_root: str | None, style: str | None) -> ImageData:
    if data_root is None and is_testbed(data):
        from rmadapter.data.emoji.drawings_data import load_drawings
        from rmadapter.data.emoji.emoji_data import load_emoji

        return load_emoji(data, style) if data in DATA else load_drawings(data, style)
    if style is not None:
        raise InputError(
            f"style is {style!r}, but data is {data!r}; valid: with the bundled data sets alone, {', '.join(BUNDLED)}"
        )
    if (found := find_named(data, data_root)) is not None:
        return load_named(*found)
    root = _find(data, data_root)
    check_text("data folder", root)
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
        # The public split names images, classes and parts, wherever the class folders lie.
        return say_unlike_published(record, data)
    note = (
        f"{root} is read as a plain folder of images: it has not the layout of the field's {record.name} "
        f"({record.folder}/{record.layout_marker}), so that class names and split are not the published ones"
    )
    return replace(data, notes=(note, *data.notes))


def _load_folder(root: Path) -> ImageData:
    split_file = find_split_file(root)
    if split_file is not None and split_file.name != OWN_FILE:
        data = read_split(root, split_file)
        if (root / CLASS_NAMES_FILE).is_file():
            note = f"{root / CLASS_NAMES_FILE} is not used: the names of the classes are those of {split_file.name}"
            data = replace(data, notes=(note, *data.notes))
        return data
    if (parts := find_parts(root)) is not None:
        if split_file is not None:
            raise InputError(
                f"{root} has parts in folders ({', '.join(parts.folders.values())}) and {split_file}; valid: one of "
                "the two; delete the file to use the folders"
            )
        return _from_parts(root, parts)
    found = find_classes(root)
    names = class_names(root, list(found.images))
    if split_file is not None:
        data = read_split(root, split_file)
        _check_unchanged(data, found, names)
        return replace(data, notes=(*found.notes, *data.notes))
    images = [
        [Item(path, label, names[folder]) for path in paths]
        for label, (folder, paths) in enumerate(found.images.items())
    ]
    train, val, test = make_split(images)
    file, note = save_split(root, train, val, test)
    repeated = repeated_names(dict(enumerate(names.values())))
    return ImageData(root.name, root, train, val, test, file, (note, *found.notes, *repeated))


def _check_unchanged(data: ImageData, found: ClassFolders, names: dict[str, str]) -> None:
    """Raise InputError where the split of ``data``, made here, leaves images out or calls classes by other names."""
    items = [*data.train, *data.val, *data.test]
    known = {item.path for item in items}
    anew = f"delete {data.split_file} to have a new one made"
    if new := sorted(path for paths in found.images.values() for path in paths if path not in known):
        raise InputError(f"{data.root} has changed since its split was made: {len(new)} new, such as {new[0]}; {anew}")
    before = {item.path.partition("/")[0]: item.name for item in items}
    if changed := by_number(folder for folder, name in names.items() if before[folder] != name):
        folder = changed[0]
        raise InputError(
            f"the names of {len(changed)} classes in {data.root} have changed since its split was made, such as that "
            f"of folder {folder!r} from {before[folder]!r} to {names[folder]!r}; {anew} with the new names and the "
            f"same images in each part, or put {CLASS_NAMES_FILE} back"
        )


def _find(data: str, data_root: str | None) -> Path:
    if (folder := find_folder(data, data_root)) is not None:
        return folder.resolve()
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
    close = "" if hint else nearest(Path(data).name, [*folders, *CATALOG, *BUNDLED])
    raise InputError(f"data is {data!r}, which is {where}{close}{hint}")


def _from_parts(root: Path, parts: Parts) -> ImageData:
    found = {part: find_classes(root / folder) for part, folder in parts.folders.items()}
    folders = list(found["train"].images)
    for part, classes in found.items():
        if odd := by_number(set(classes.images) ^ set(folders)):
            here, there = parts.folders["train"], parts.folders[part]
            here, there = (here, there) if odd[0] in folders else (there, here)
            raise InputError(
                f"{root}: class folder {odd[0]!r} is in {here} and not in {there}"
                f"{nearest(odd[0], set(classes.images) & set(folders))}; valid: the same in each"
            )
    names = class_names(root, folders)
    items = {
        part: [
            Item(f"{parts.folders[part]}/{path}", label, names[folder])
            for label, folder in enumerate(folders)
            for path in classes.images[folder]
        ]
        for part, classes in found.items()
    }
    notes = [note for classes in found.values() for note in classes.notes]
    if parts.others:
        notes.append(f"{root}: left out {some(parts.others)}, in none of the parts {', '.join(parts.folders.values())}")
    notes += repeated_names(dict(enumerate(names.values())))
    return ImageData(root.name, root, items["train"], items.get("val", []), items["test"], None, tuple(notes))
