"""One labelled image, and a data set of them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL.Image import Image

from rmadapter.data.reading import read_image

# In the place of a split file's name, for parts that the data set's own lists or folders make.
OWN_LISTS = "own lists"
SIZES = 64
PARTS = ("train", "val", "test")


class Item(NamedTuple):
    """One labelled image: ``path`` relative to the image root in posix form, ``label`` from 0, class ``name``."""

    path: str
    label: int
    name: str


@dataclass(frozen=True)
class ImageData:
    """A data set: its images in three parts.

    Attributes:
        name: what it is called in results.
        root: folder that the items' paths are relative to.
        train, val, test: items; ``val`` may be empty.
        split_file: JSON file that the parts come from, or None.
        notes: sentences for the user, such as that a split was made.
        reader: path -> image, for images that are not files below ``root``.
        style: whose drawings they are, for the bundled data sets.
        max_shots: training images a class, where more than that is a mistake to be reported.
        own_lists: whether the parts are those of the data set's own lists or folders, in the field's layout.
        retention: the same classes in a style that nobody has seen, to measure what adaptation leaves.
    """

    name: str
    root: Path
    train: list[Item]
    val: list[Item]
    test: list[Item]
    split_file: Path | None
    notes: tuple[str, ...] = ()
    reader: Callable[[str], Image] | None = None
    style: str | None = None
    max_shots: int | None = None
    own_lists: bool = False
    retention: ImageData | None = None

    def read(self, path: str) -> Image:
        """The image of an item's ``path`` as RGB; InputError where it cannot be read."""
        return self.reader(path) if self.reader else read_image(self.root / path)

    def content(self, path: str) -> bytes:
        """What decides the image of ``path``: its file's bytes, or the picture's where it is no file."""
        return self.reader(path).tobytes() if self.reader else (self.root / path).read_bytes()

    @property
    def split_id(self) -> str | None:
        """What tells its split from another: the split file's name and the first digits of its SHA-256, or OWN_LISTS.

        None where the parts come from neither: bundled data, other folders, a split that could not be kept.
        """
        if self.split_file is None:
            return OWN_LISTS if self.own_lists else None
        return f"{self.split_file.name}, SHA-256 {hashlib.sha256(self.split_file.read_bytes()).hexdigest()[:12]}"

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of what it holds: style, part, path, label and class name of every image, and the size of some files.

        It tells a data set from another of its name, wherever either lies: a copy has the hash of the original. Of each
        part the sizes of some ``SIZES`` files, spread over it, count, so that other images under the same names are
        another data set; asking for all sizes of ImageNet takes minutes on a network's disk. No image is read: a
        search may ask for the hash of data whose test images it may not see.
        """
        return self._hash(sized=PARTS)

    @cached_property
    def training_hash(self) -> str:
        """``content_hash`` without the sizes of test files: of what a run is trained on, as far as files are looked at.

        A damaged test image stops the test of a run, and not its training. When it has been put right, the run that
        goes on is the one that began.
        """
        return self._hash(sized=("train", "val"))

    @property
    def hashes(self) -> dict[str, str]:
        """What is kept of the data that a run or a search begins with, for ``is_same_training``."""
        return {"data_hash": self.content_hash, "training_hash": self.training_hash}

    def is_same_training(self, before: Mapping[str, Any]) -> bool:
        """Whether the data whose ``hashes`` are ``before`` train as these do; earlier versions kept one hash alone."""
        known = before.get("training_hash")
        return self.content_hash == before.get("data_hash") if known is None else self.training_hash == known

    def _hash(self, sized: Sequence[str]) -> str:
        """SHA-256 of the style and of every item, and of the sizes of some files of the parts ``sized``."""
        digest = hashlib.sha256(f"{self.style}\n".encode())
        for part in PARTS:
            items = getattr(self, part)
            by_size = self.reader is None and part in sized
            for item in items[:: max(1, len(items) // SIZES)] if by_size else ():
                with contextlib.suppress(OSError):  # one that is not there is said where it is needed
                    digest.update(f"{(self.root / item.path).stat().st_size}\n".encode())
            for item in items:
                fields = "\0".join((part, item.path, str(item.label), item.name))
                digest.update(fields.encode("utf-8", "surrogateescape") + b"\n")
        return digest.hexdigest()

    @property
    def class_names(self) -> list[str]:
        """Names of all classes by label; equal names are different classes where their labels differ."""
        names = {item.label: item.name for item in [*self.train, *self.val, *self.test]}
        return [names[label] for label in sorted(names)]
