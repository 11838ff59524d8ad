"""``rmadapter report``: of run folders, or of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rmadapter.config.paths import PathText
from rmadapter.errors import InputError


@dataclass
class ReportConfig:
    """Tables (Markdown, CSV) and plots (PNG) from run folders, or from the folder of a sweep (HTML too).

    Args:
        runs: run folders, or folders that hold them, or one sweep
        out: folder for report.md, report.csv and the plots, in place of an earlier report's; default: report, of a
            sweep the folder report in it
        compare: of a sweep, the method whose paired differences to the others are shown; default: rmadapter, else the
            last
    """

    runs: list[PathText] = field(default_factory=list)
    out: PathText | None = None
    compare: str | None = None

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("no run folder is given; valid: rmadapter report DIR...")


def print_report(config: ReportConfig) -> None:
    """Write the report and print its text.

    Raises:
        InputError: a sweep beside other folders, ``compare`` without a sweep, no results, damaged ones, ``out`` is a
            file or has another program's.
    """
    # A mistyped option is told before matplotlib is there.
    from rmadapter.reports.run_report import report
    from rmadapter.reports.sweep.page import is_sweep, sweep_report

    first = Path(config.runs[0])
    if is_sweep(first):
        if len(config.runs) > 1:
            raise InputError(
                f"runs is {config.runs!r}, of which the first is a sweep; valid: one sweep, or run folders"
            )
        print(sweep_report(first, Path(config.out or first / "report"), config.compare))
        return
    if config.compare is not None:
        raise InputError(f"compare is {config.compare!r}; valid: with one sweep, not with run folders")
    print(report([Path(run) for run in config.runs], Path(config.out or "report")).text)
