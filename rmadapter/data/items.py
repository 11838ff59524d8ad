"""One labelled image, and a data set of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


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
    """

    name: str
    root: Path
    train: list[Item]
    val: list[Item]
    test: list[Item]
    split_file: Path | None
    notes: tuple[str, ...] = ()

    @property
    def class_names(self) -> list[str]:
        """Names of all classes by label; equal names are different classes where their labels differ."""
        names = {item.label: item.name for item in [*self.train, *self.val, *self.test]}
        return [names[label] for label in sorted(names)]
