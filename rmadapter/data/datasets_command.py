"""``rmadapter datasets check`` and ``rmadapter datasets download``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rmadapter.config.paths import PathText
from rmadapter.data.catalog import CATALOG
from rmadapter.data.checking import check, describe
from rmadapter.data.download import download, numbered
from rmadapter.errors import InputError, check_choice

ACTIONS = ("check", "download")


@dataclass
class DatasetsConfig:
    """The field's data sets: 'check NAME...' says what is there, 'download NAME...' gets them or says how.

    Args:
        words: check or download, and names of data sets; check without names takes all
        data_root: folder that holds the data sets
    """

    words: list[str] = field(default_factory=list)
    data_root: PathText | None = None

    def __post_init__(self) -> None:
        if not self.words:
            raise InputError("datasets needs a word after it; valid: datasets check, datasets download NAME")
        check_choice("datasets", self.words[0], ACTIONS)
        if self.data_root is None:
            raise InputError(f"data_root is missing; valid: rmadapter datasets {self.words[0]} --data-root DIR")
        for name in self.names:
            check_choice("data set", name, CATALOG)
        if self.words[0] == "download" and not self.names:
            raise InputError(f"datasets download needs a name; valid: {', '.join(CATALOG)}")

    @property
    def names(self) -> list[str]:
        """The data sets that are named."""
        return self.words[1:]


def run_datasets(config: DatasetsConfig) -> None:
    """Check or download, and print.

    Raises:
        InputError: a data set that is there cannot be used; a download that failed.
    """
    assert config.data_root is not None  # checked when the configuration was made
    root = Path(config.data_root)
    if config.words[0] == "check":
        checked = check(config.names, root)
        print(describe(checked))
        unusable = [one.name for one in checked if one.error or (config.names and not one.there)]
        if unusable:
            raise InputError(f"of the data sets in {root} these cannot be used: {', '.join(unusable)}")
        return
    for name in config.names:
        left = download(name, root)
        if left:
            print(numbered(name, root, left))
        else:
            print(describe(check([name], root)))
