"""The folder that a report goes into: whether it may, and what an earlier report has left there."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from rmadapter.errors import InputError
from rmadapter.files import check_folder_name, check_may_write, read_bytes

REPORT = "report.md"
RUN_FILES = (REPORT, "report.csv")
SWEEP_FILES = (*RUN_FILES, "differences.csv", "report.html")
# Every report begins its legend with it, and is told from another program's file of that name by it.
MEASURE = "Accuracy is top-1 in percent"
_PICTURE = re.compile(r"^!\[.*\]\(([\w.+=-]+\.png)\)$", re.MULTILINE)


def earlier_report(out: Path, names: Sequence[str]) -> list[Path]:
    """The files of the report that is in ``out``, which a new one takes the place of; nothing is written.

    Raises:
        InputError: ``out`` is a file or may not be written; without a report in it one of ``names``, which are to be
            written, is there.
    """
    check_folder_name("out", out)
    check_may_write("out", out)
    report = out / REPORT
    content = read_bytes(report, "report") if report.exists() else b""
    if MEASURE.encode() in content:
        text = content.decode(errors="replace")
        of_sweep = text.startswith("# ")  # the others have no title
        return [out / name for name in (*(SWEEP_FILES if of_sweep else RUN_FILES), *_PICTURE.findall(text))]
    others = [name for name in names if (out / name).exists()]
    if others:
        raise InputError(
            f"out is {str(out)!r}, where there is a {others[0]} that rmadapter report has not written; valid: another "
            "--out, or that file elsewhere"
        )
    return []


def remove_left(earlier: Iterable[Path], made: Collection[Path]) -> None:
    """Delete the files of an ``earlier`` report that are none of those that are ``made`` now."""
    for path in earlier:
        if path not in made:
            path.unlink(missing_ok=True)
