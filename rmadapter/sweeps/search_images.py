"""The images that a search may see: base classes, and of these training and validation images alone.

They are linked into a folder of their own with a split file of their own (pictures of a bundled data set are written
there), and a search's runs are given that folder: test images and images of new classes are not in it. Where a bundled
data set has an unseen style that measures retention, its validation images of the base classes are there too.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rmadapter.data import ImageData, Item, base_new_split, load_data
from rmadapter.data.splits import divide_training
from rmadapter.errors import InputError
from rmadapter.files import write_atomic, write_json

FOLDER = "search-data"
SPLIT_FILE = "split_search.json"
SEED = 1


def searchable(data: ImageData, images_a_class: int) -> tuple[list[Item], list[Item]]:
    """Training and validation items of the base classes of ``data``, at most ``images_a_class`` of each, relabelled.

    Where the data set has no validation images, a fifth of the training images takes their place, without those that
    are test images too. The search trains on the first half of these classes, by label, and takes the second half for
    new ones.

    Raises:
        InputError: fewer than four base classes, a class without validation images.
    """
    classes = len(data.class_names)
    train, val = (base_new_split(items, "base", classes) for items in (data.train, data.val))
    if not train:
        raise InputError(f"data {data.name} has no training images; valid: a data set to train on")
    if not val:
        train, val = divide_training(train)
        tested = {item.path for item in data.test}
        val = [item for item in val if item.path not in tested]
    base = (classes + 1) // 2
    if base < 4:
        raise InputError(
            f"data {data.name} has {base} base classes; valid for a search: four or more, two for each half of them"
        )
    lacking = sorted(set(range(base)) - {item.label for item in val})
    if lacking:
        name = next(item.name for item in train if item.label == lacking[0])
        raise InputError(f"data {data.name} has no validation image of class {name!r}; a search needs one of each")
    return _capped(train, images_a_class), _capped(val, images_a_class)


def searchable_unseen(data: ImageData, images_a_class: int) -> list[Item]:
    """Validation items of the base classes of ``data`` in the unseen style, as ``searchable`` has them in its own.

    Empty where no style is unseen, and where all that there is of it are test images: a data set with several drawings
    a class has validation images of the styles that are trained on alone.
    """
    if data.retention is None:
        return []
    base = base_new_split(data.retention.val, "base", len(data.class_names))
    return _capped([item for item in base if item.path.startswith(f"{data.retention.style}/")], images_a_class)


def _capped(items: Sequence[Item], limit: int) -> list[Item]:
    """At most ``limit`` items a class, drawn with a fixed seed, in their order."""
    by_label: dict[int, list[Item]] = {}
    for item in items:
        by_label.setdefault(item.label, []).append(item)
    generator = random.Random(SEED)
    kept = {
        item.path
        for label in sorted(by_label)
        for item in (generator.sample(by_label[label], limit) if len(by_label[label]) > limit else by_label[label])
    }
    return [item for item in items if item.path in kept]


def write_search_data(
    data: ImageData, train: Sequence[Item], val: Sequence[Item], out: Path, unseen: Sequence[Item] = ()
) -> ImageData:
    """The data set in the folder ``search-data`` in ``out``, made where it is not there: images and their split file.

    ``train`` and ``val`` are what is ``searchable`` of ``data``, ``unseen`` what is ``searchable_unseen`` and becomes
    the ``retention`` of the data set. In the split file the validation images stand as ``test``, which is what a run
    evaluates on.
    """
    folder = out / FOLDER
    if data.reader is not None:
        train, val, unseen = (
            [item._replace(path=f"{item.path}.png") for item in items] for items in (train, val, unseen)
        )
    for item in (*train, *val, *unseen):
        place = folder / item.path
        place.parent.mkdir(parents=True, exist_ok=True)
        if data.reader is None:
            _link((data.root / item.path).resolve(), place)
        elif not place.exists():
            picture = data.read(item.path.removesuffix(".png"))
            write_atomic(place, partial(picture.save, format="PNG"))
    write_json(folder / SPLIT_FILE, {"train": train, "val": [], "test": val})
    written = load_data(str(folder))
    if not unseen:
        return written
    assert data.retention is not None  # they are of it
    kept = ImageData(written.name, written.root, [], [], list(unseen), None, style=data.retention.style)
    return dataclasses.replace(written, retention=kept)


def _link(image: Path, link: Path) -> None:
    """``link`` leads to ``image``, or is a copy where there are no links; what it led to before is not touched."""
    if link.is_symlink() and link.readlink() != image:
        link.unlink()  # the data have moved since
    if os.path.lexists(link):
        return
    try:
        os.symlink(image, link)
    except (OSError, NotImplementedError):  # file systems and rights without symbolic links
        write_atomic(link, partial(shutil.copyfile, image))
