"""Folders of a data set that are its parts: ``train/`` and ``test/`` by any of their usual names, in any case."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rmadapter.data.image_files import folders_in, is_output
from rmadapter.errors import InputError

NAMES = {
    "train": {"train", "training", "trn", "trainset"},
    "val": {"val", "valid", "validation", "dev", "valset"},
    "test": {"test", "testing", "tst", "testset"},
}
# What may stand beside it, as in seg_train, train_images or "Training Set".
FILLERS = {"", "seg", "set", "split", "data", "dataset", "images", "image", "imgs", "img"}


def part_of(name: str) -> str | None:
    """The part that a folder called ``name`` is by its name: train, val or test, or None."""
    words = [word for word in re.split("[^a-z]+", name.lower()) if word not in FILLERS]
    if len(words) != 1:
        return None
    return next((part for part, names in NAMES.items() if words[0] in names), None)


@dataclass(frozen=True)
class Parts:
    """The parts of a data set that lie in folders.

    Attributes:
        folders: part -> its folder, relative to the root; train and test, and val where there is one.
        others: folders beside them, which belong to no part.
    """

    folders: dict[str, str]
    others: tuple[str, ...]


def find_parts(root: Path) -> Parts | None:
    """The parts in ``root``; None where no folder is called like a part and has class folders in it.

    A folder in a folder of the same meaning, as ``seg_train/seg_train``, is taken for it.

    Raises:
        InputError: two folders for one part, one of train and test without the other.
    """
    found: dict[str, str] = {}
    named, others = {}, []
    for name in folders_in(root):
        part = part_of(name)
        if is_output(root / name):
            continue
        if part is None:
            others.append(name)
            continue
        inner = _inner(root, name, part)
        if all(is_output(root / inner / folder) for folder in folders_in(root / inner)):
            named[part] = name
            continue
        if part in found:
            raise InputError(f"{root} has two folders for {part}: {found[part]} and {inner}; valid: one")
        found[part] = inner
    if not found:
        return None
    found = {part: found[part] for part in NAMES if part in found}
    for part in ("train", "test"):
        if part not in found:
            there = " and ".join(f"{folder}/" for folder in found.values())
            why = f"; {named[part]}/ has no class folders: of what is in it no class is known" if part in named else ""
            raise InputError(
                f"{root} has {there} but no {part}/{why}; valid: train/ and test/ with the same class folders, and "
                "maybe val/; where these are classes, the images of a class directly in its folder"
            )
    return Parts(found, (*others, *(name for part, name in named.items() if part not in found)))


def _inner(root: Path, name: str, part: str) -> str:
    """``name``, or the folder in it where that is all there is and it means the same part."""
    while len(inside := folders_in(root / name)) == 1 and part_of(inside[0]) == part:
        name = f"{name}/{inside[0]}"
    return name
