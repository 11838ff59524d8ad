"""The tables of docs/comparison.md, from the reports of the sweeps that are kept.

    rmadapter report bench/results/testbed/cross
    python -m rmadapter.testbed.comparison_page
    python -m rmadapter.testbed.comparison_page --check     # writes nothing, fails where a table is another

In the page a comment says which table stands below it: ``<!-- means of FOLDER -->``, ``<!-- differences of FOLDER -->``
with intervals over data sets, or ``<!-- classes of FOLDER -->`` with intervals over classes and draws on these data
sets alone. ``by HM`` behind the folder sorts methods by their harmonic mean. Sentences are a person's.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from rmadapter.config.arguments import run_module
from rmadapter.config.paths import PathText
from rmadapter.errors import InputError, check_choice
from rmadapter.files import write_text
from rmadapter.reports.published import NAMES as PUBLISHED_NAMES
from rmadapter.reports.tables import compact_heading, compact_row

# Kind of table -> its heading in a report.
KINDS = {
    "means": r"Mean over the data sets(?: trained on)?",
    "differences": r"Paired differences",
    "classes": r"Paired differences on these data sets alone",
}
# What all rows of a sweep have in common, or say once more.
LEFT_OUT = {"style", "data sets", "seeds", "mean of HMs", "HM per seed", "pairs", "classes", "draws"}
OWN = "rmadapter"
NAMES = {
    **PUBLISHED_NAMES,
    "clip-lora": "CLIP-LoRA",
    "taskres": "TaskRes",
    "tip-adapter": "Tip-Adapter",
    "tip-adapter-f": "Tip-Adapter-F",
    "zeroshot": "zero-shot",
    "single": "single branch",
    "single+consistency": "single branch with consistency",
}
MARK = re.compile(r"^<!-- (\w+) of (\S+?)( by HM)? -->\n\n((?:\|.*\n)*)", re.MULTILINE)


@dataclass
class Options:
    """Write the tables of the comparison page anew.

    Args:
        page: Markdown file with marks
        root: folder that the marks' folders are in
        check: write nothing; where a table is another than the report's, that is an error
    """

    page: PathText = "docs/comparison.md"
    root: PathText = "."
    check: bool = False


def report_table(report: str, kind: str, where: str) -> list[list[str]]:
    """The cells of a report's first table of that kind, headings first.

    Raises:
        InputError: there is none.
    """
    found = re.search(rf"^## {KINDS[kind]}\n\n((?:\|.*\n)+)", report, re.MULTILINE)
    if found is None:
        raise InputError(f"{where} has no table of {kind}; rmadapter report writes it")
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found[1].splitlines()]
    return [lines[0], *lines[2:]]


def page_table(cells: list[list[str]], by_hm: bool = False) -> str:
    """The table as the page has it: methods by their names, without the columns ``LEFT_OUT``."""
    headings, *rows = cells
    taken = [n for n, heading in enumerate(headings) if heading not in LEFT_OUT]
    if by_hm:
        place = headings.index("HM of means")
        rows = sorted(rows, key=lambda row: -float(row[place].split()[0]))
    first = f"{NAMES[OWN]} -" if headings[0] == "difference" else headings[0]
    lines = [compact_heading([first, *(headings[n] for n in taken[1:])], [0])]
    lines += [compact_row([_named(row[0]), *(row[n] for n in taken[1:])]) for row in rows]
    return "\n".join(lines) + "\n"


def _named(method: str) -> str:
    method = method.removeprefix(f"{OWN} - ")
    return NAMES.get(method, f"`{method}`")


def with_tables(page: str, root: Path) -> str:
    """``page`` with the table below each mark taken from the report of the mark's folder in ``root``.

    Raises:
        InputError: a mark of another kind, a folder without a report, a report without such a table.
    """

    def table(found: re.Match[str]) -> str:
        kind, folder, by_hm, before = found.groups()
        check_choice("kind of table", kind, KINDS)
        report = root / folder / "report" / "report.md"
        if not report.is_file():
            raise InputError(f"{report} is not there; rmadapter report {folder} writes it")
        cells = report_table(report.read_text(encoding="utf-8"), kind, str(report))
        return f"<!-- {kind} of {folder}{by_hm or ''} -->\n\n{page_table(cells, bool(by_hm))}" + (
            "" if before else "\n"
        )

    return MARK.sub(table, page)


def run(options: Options) -> None:
    """Write the page, or say that it is up to date."""
    path = Path(options.page)
    page = path.read_text(encoding="utf-8")
    found = with_tables(page, Path(options.root))
    if found == page:
        print(f"{path}: every table is its report's")
    elif options.check:
        pairs = zip(page.splitlines(), found.splitlines(), strict=False)
        line = next((n for n, (one, other) in enumerate(pairs, 1) if one != other), len(page.splitlines()))
        raise InputError(f"{path}:{line} is not what the report says; python -m rmadapter.testbed.comparison_page")
    else:
        write_text(path, found)
        print(f"{path}: written")


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status."""
    return run_module(Options, run, argv, prog="rmadapter.testbed.comparison_page")


if __name__ == "__main__":
    sys.exit(main())
