"""A search's folder: what it is of, the file of its trials, and that one process is at it.

OUT/search.json     what is searched, and on which data
OUT/study.db        the trials, optuna's own file
OUT/zeroshot/       the frozen model as a run, on the same images
OUT/trials/         the runs of each trial
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rmadapter.data import ImageData
from rmadapter.errors import InputError, causes
from rmadapter.files import read_json, shown_names, write_json
from rmadapter.locks import ProcessLock
from rmadapter.training.run_folder import changed_data

LOCK = ".lock"


class SearchFolder:
    """The folder ``path`` of one search."""

    def __init__(self, path: Path):
        self.path = path
        self.settings_file = path / "search.json"
        self.study_file = path / "study.db"
        self.zeroshot = path / "zeroshot" / "run"
        self.trials = path / "trials"

    def check(self, settings: dict[str, Any], data: ImageData) -> None:
        """May a search with ``settings`` over ``data`` go into the folder? Nothing is written.

        Raises:
            InputError: something else is in it, another search, one on other data, or one whose trials are gone.
        """
        if not self.settings_file.is_file():
            if self.path.is_dir() and (others := shown_names(self.path)):
                raise InputError(
                    f"out is {str(self.path)!r}, a folder with other files in it ({others[0]}); valid: a new or empty "
                    "one"
                )
            return
        before = read_json(self.settings_file, "search file")
        before = before if isinstance(before, dict) else {}
        if before.get("format") != settings["format"]:
            raise InputError(
                f"the search in {self.path} was made by another version (format {before.get('format')!r}, this one has "
                f"{settings['format']}); valid: another --out, or the version that made it"
            )
        for name, value in settings.items():
            if before.get(name) != value:
                raise InputError(
                    f"{name} is {value!r}, but the search in {self.path} has {before.get(name)!r}; valid: that, or "
                    "another --out"
                )
        if not data.is_same_training(before):  # test images are none of a search's
            raise InputError(
                f"{changed_data(data, str(before.get('data_hash')), f'the search in {self.path} began')}; valid: the "
                "data as they were, or another --out"
            )
        if self.trials.is_dir() and not self.study_file.is_file():
            raise InputError(
                f"out is {str(self.path)!r}, where a search has made trials, but {self.study_file.name}, in which they "
                "stand, is missing; valid: that file back in its place, or another --out"
            )

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other process has the search: each would take the other's trial for one left unfinished.

        Raises:
            InputError: another process has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = ProcessLock(self.path / LOCK)
        with lock.attempt() as alone:
            if not alone:
                raise InputError(
                    f"out is {str(self.path)!r}, where a search is going on ({lock.in_the_way}); valid: another --out, "
                    "or its end"
                )
            yield

    def enter(self, settings: dict[str, Any], data: ImageData) -> None:
        """Write what is searched, unless it stands there; InputError as ``check`` raises it."""
        self.check(settings, data)
        if not self.settings_file.is_file():
            write_json(self.settings_file, {**settings, **data.hashes})

    @contextlib.contextmanager
    def storage_said(self) -> Iterator[None]:
        """Inside, an error of the file of the trials becomes an InputError that says what can be done."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except Exception as error:
            # optuna's own handling of such an error may fail in turn.
            found = [one for one in causes(error) if isinstance(one, (StorageInternalError, SQLAlchemyError))]
            if not found:
                raise
            raise InputError(
                f"{self.study_file}, which holds the trials of the search, is damaged or was deleted meanwhile "
                f"({str(found[0]).splitlines()[0]}); valid: that file as it was, or another --out"
            ) from error
