"""Split files: which image is for training, which for validation, which for the test.

``{"train": [[path, label, class name], ...], "val": [...], "test": [...]}``, paths relative to the image folder:
the field's own form (CoOp's), so that public split files are read as they are.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from rmadapter.data.catalog import record_of
from rmadapter.data.class_names import check_class_name
from rmadapter.data.items import PARTS, ImageData, Item
from rmadapter.errors import InputError
from rmadapter.files import read_json, write_json

OWN_FILE = "split_rmadapter.json"
SPLIT_SEED = 1


class MissingImagesError(InputError):
    """A split file or annotation files name images that are not there; ``data`` is the data set as they have it."""

    def __init__(self, message: str, data: ImageData):
        super().__init__(message)
        self.data = data


def find_split_file(root: Path) -> Path | None:
    """The split file in ``root``, None where there is none; InputError where it is not clear which."""
    found = sorted(root.glob("split_*.json"))
    if len(found) > 1:
        raise InputError(f"{root} has several split files: {', '.join(p.name for p in found)}; valid: one")
    return found[0] if found else None


def make_split(classes: Sequence[Sequence[Item]]) -> tuple[list[Item], list[Item], list[Item]]:
    """Train, val and test of each class: 50, 20 and 30 %, shuffled with seed 1.

    Counts are rounded; a class of two or more images has at least one for training and one for the test, a class of
    one image has it for training.
    """
    generator = random.Random(SPLIT_SEED)
    train, val, test = [], [], []
    for items in classes:
        items = list(items)
        generator.shuffle(items)
        first = max(1, round(0.5 * len(items)))
        second = min(first + round(0.2 * len(items)), max(len(items) - 1, first))
        train += items[:first]
        val += items[first:second]
        test += items[second:]
    return train, val, test


def divide_training(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Train and val of a data set with test images of its own: 80 and 20 % of each class, shuffled with seed 1."""
    generator = random.Random(SPLIT_SEED)
    by_label: dict[int, list[Item]] = {}
    for item in items:
        by_label.setdefault(item.label, []).append(item)
    train, val = [], []
    for label in sorted(by_label):
        group = by_label[label]
        generator.shuffle(group)
        count = min(round(0.2 * len(group)), len(group) - 1)
        val += group[:count]
        train += group[count:]
    return train, val


def save_split(
    root: Path, train: list[Item], val: list[Item], test: list[Item], what: str = "50/20/30 % a class"
) -> tuple[Path | None, str]:
    """Write the split beside the images; the file (None where it cannot be written) and a sentence for the user."""
    path = root / OWN_FILE
    made = f"split of {what}, seed {SPLIT_SEED}"
    try:
        write_json(path, {"train": train, "val": val, "test": test})
    except InputError as error:
        return None, f"made a {made}, the same each time, but it was not kept: {error}"
    return path, f"made a {made}: {path}"


def read_split(root: Path, path: Path) -> ImageData:
    """The data set that split file ``path`` describes, its images under ``root``.

    Names are written with spaces for underscores, as the field's prompts have them; those of a split that was made
    here are as they were given. Two classes of one name are kept apart by their labels, and a note says so.

    Raises:
        InputError: not JSON of the form above, a path that leaves the folder, a label with two names, labels that
            do not count from 0, fewer than two classes, a class without training images, images that are missing
            (MissingImagesError, the first ten named).
    """
    values = read_json(path, "split file")
    check_lists(f"split file {path}", values)
    parts = {part: [_item(path, entry) for entry in values[part]] for part in PARTS}
    items = [item for part in PARTS for item in parts[part]]
    notes = (*repeated_names(checked_names(f"split file {path}", parts["train"], items)), *repeated_entries(parts))
    data = ImageData(root.name, root, parts["train"], parts["val"], parts["test"], path, notes)
    there = _files(root, _parents(items))
    missing = [item.path for item in items if item.path not in there]
    if missing:
        own = "; delete it to have a new split made" if path.name == OWN_FILE else _where(root, path, missing[0])
        raise MissingImagesError(
            f"split file {path} names {len(missing)} images that are not in {root}: {', '.join(missing[:10])}{own}",
            data,
        )
    return data


def check_lists(where: str, values: Any) -> None:
    """Raise InputError unless ``values`` are an object with the three lists; ``where`` begins the message."""
    there = values if isinstance(values, dict) else {}
    missing = [part for part in PARTS if not isinstance(there.get(part), list)]
    if missing:
        raise InputError(
            f"{where} has no list {' and no list '.join(missing)}; valid: "
            '{"train": [...], "val": [...], "test": [...]}, of which val may be empty'
        )


def _where(root: Path, split_file: Path, image: str) -> str:
    """For people: the folder in ``root`` below which ``image`` lies, as CoOp's data sets have it.

    One of the field's data sets stays in the folder of its name, which tells its prompt.
    """
    folders = sorted(folder.name for folder in root.iterdir() if (folder / image).is_file())
    if not folders:
        return ""
    named = record_of(str(split_file.parent)) is not None
    step = f"what is in that folder belongs into {root}" if named else "move the split file there and name that folder"
    return f"; {image} is in {root / folders[0]}: {step}"


def repeated_entries(items: Mapping[str, Sequence[Item]]) -> tuple[str, ...]:
    """A note for each part in which images stand more than once, where they count as often."""
    found = []
    for part, of_part in items.items():
        twice = [path for path, count in Counter(item.path for item in of_part).items() if count > 1]
        if twice:
            found.append(f"{len(twice)} images stand in {part} more than once and count as often, such as {twice[0]}")
    return tuple(found)


def checked_names(where: str, train: Sequence[Item], items: Sequence[Item], *, trains: bool = True) -> dict[int, str]:
    """Label -> name of ``items``, all there are; ``where`` begins the messages.

    Raises:
        InputError: a label with two names, a name that cannot stand in a prompt, labels that do not count from 0,
            fewer than two classes; with ``trains`` a class without a training image.
    """
    names: dict[int, str] = {}
    for item in items:
        if names.setdefault(item.label, item.name) != item.name:
            raise InputError(f"{where}: label {item.label} is {names[item.label]!r} and {item.name!r}")
    for name in names.values():
        check_class_name(where, name)
    if sorted(names) != list(range(len(names))) or len(names) < 2:
        gap = next((label for label in range(len(names)) if label not in names), None)
        raise InputError(
            f"{where} has labels {', '.join(map(str, sorted(names)[:10]))}{'' if gap is None else f' and no {gap}'}; "
            "valid: 0, 1, ... without a gap, two or more"
        )
    trained = {item.label for item in train}
    untrained = [label for label in sorted(names) if label not in trained]
    if trains and untrained:
        raise InputError(
            f"{where} has no training image of {len(untrained)} classes, such as {names[untrained[0]]!r} "
            f"(label {untrained[0]}); valid: every class of val and test in train too"
        )
    return names


def repeated_names(names: dict[int, str]) -> tuple[str, ...]:
    """A note where several labels have one name, or names that differ in capitals and blanks alone; none otherwise."""
    alike: dict[str, list[int]] = {}
    for label, name in sorted(names.items()):
        alike.setdefault(" ".join(name.lower().split()), []).append(label)  # as open_clip's tokenizers clean a text
    repeated = [labels for labels in alike.values() if len(labels) > 1]
    if not repeated:
        return ()
    labels = repeated[0]
    spellings = list(dict.fromkeys(repr(names[label]) for label in labels))
    said = ", which CLIP's tokenizers read alike" if len(spellings) > 1 else ""
    return (
        f"{len(repeated)} class names stand for several classes, such as {' and '.join(spellings)} (labels "
        f"{', '.join(map(str, labels))}){said}; they are kept apart by label, but no prompt can tell them apart",
    )


def _item(path: Path, entry: Any) -> Item:
    well_formed = (
        isinstance(entry, list)
        and len(entry) == 3
        and isinstance(entry[0], str)
        and isinstance(entry[1], int)
        and not isinstance(entry[1], bool)
        and isinstance(entry[2], str)
    )
    if not well_formed:
        raise InputError(f"split file {path}: entry {entry!r}; valid: [relative path, label, class name]")
    image = entry[0]
    windows, posix = PureWindowsPath(image), PurePosixPath(image)
    # A split that was made here may name files as archives from Windows leave them on other systems: cat/a\\b.png.
    foreign = path.name != OWN_FILE
    outside = posix.is_absolute() or ".." in posix.parts
    if outside or (foreign and (windows.drive or windows.root or ".." in windows.parts)):
        raise InputError(
            f"split file {path}: path {image!r} leaves the image folder; valid: a relative path without '..'"
        )
    if foreign and "\\" in image:
        raise InputError(f"split file {path}: path {image!r} has a backslash; valid: '/' between folders and files")
    name = entry[2].replace("_", " ") if foreign else entry[2]
    return Item(PurePosixPath(image).as_posix(), entry[1], name)


def missing_images(root: Path, items: Sequence[Item]) -> list[str]:
    """Paths of ``items`` that are not files under ``root``, in order."""
    there = _files(root, _parents(items))
    return [item.path for item in items if item.path not in there]


def _parents(items: Sequence[Item]) -> set[str]:
    return {item.path.rpartition("/")[0] for item in items}


def _files(root: Path, folders: set[str]) -> set[str]:
    """Paths of all files in ``folders``, listed a folder at a time: one call each instead of one an image."""
    found: set[str] = set()
    for folder in folders:
        try:
            with os.scandir(root / folder) as entries:
                found.update(f"{folder}/{entry.name}" if folder else entry.name for entry in entries)
        except OSError:
            continue  # its images are reported as missing
    return found
