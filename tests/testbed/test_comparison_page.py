"""docs/comparison.md has the numbers of the reports that are kept, and nothing is written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from rmadapter.errors import InputError
from rmadapter.testbed.comparison_page import main, with_tables

ROOT = Path(__file__).parents[2]
REPORT = """# Base-to-new generalisation

## Mean over the data sets

| method       | style  | data sets | seeds |         base | HM of means | HM per seed |
| ------------ | ------ | --------: | ----: | -----------: | ----------: | ----------: |
| zeroshot     | fluent |         5 |       |        60.44 |       57.88 |       57.88 |
| rmadapter    | fluent |         5 |     2 | 89.62 ± 0.30 |       69.15 |       69.15 |
| rmadapter-l1 | fluent |         5 |     2 | 89.00 ± 0.30 |       58.00 |       58.00 |

## Paired differences

| difference           | data sets | pairs |                   base |
| -------------------- | --------: | ----: | ---------------------: |
| rmadapter - zeroshot |         5 |     5 | +29.17 [+19.30, +39.05] (5/5) |

## Paired differences on these data sets alone

| difference           | classes | draws |                    base |
| -------------------- | ------: | ----: | ----------------------: |
| rmadapter - zeroshot |     757 |     2 | +29.17 [+25.96, +32.81] |
"""
PAGE = """Sentences stay.

<!-- means of sweep by HM -->

| an old table |
|---|

<!-- differences of sweep -->

| another |

<!-- classes of sweep -->

So do these: <!-- means of nothing -->
"""
WRITTEN = """Sentences stay.

<!-- means of sweep by HM -->

| method | base | HM of means |
|---|--:|--:|
| RMAdapter | 89.62 ± 0.30 | 69.15 |
| `rmadapter-l1` | 89.00 ± 0.30 | 58.00 |
| zero-shot | 60.44 | 57.88 |

<!-- differences of sweep -->

| RMAdapter - | base |
|---|--:|
| zero-shot | +29.17 [+19.30, +39.05] (5/5) |

<!-- classes of sweep -->

| RMAdapter - | base |
|---|--:|
| zero-shot | +29.17 [+25.96, +32.81] |

So do these: <!-- means of nothing -->
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "sweep/report").mkdir(parents=True)
    (tmp_path / "sweep/report/report.md").write_text(REPORT, encoding="utf-8")
    (tmp_path / "page.md").write_text(PAGE, encoding="utf-8")
    return tmp_path


def test_the_page_that_is_kept_is_up_to_date(capsys):
    page = ROOT / "docs/comparison.md"
    assert page.read_text(encoding="utf-8").count("<!-- ") >= 14
    assert main(["--page", str(page), "--root", str(ROOT), "--check"]) == 0, capsys.readouterr().err


def test_tables_come_from_the_reports(root):
    assert with_tables(PAGE, root) == WRITTEN
    assert with_tables(WRITTEN, root) == WRITTEN


def test_a_page_that_is_behind_is_said_and_written(root, capsys):
    words = ["--page", str(root / "page.md"), "--root", str(root)]
    assert main([*words, "--check"]) == 2
    assert "page.md:5 is not what the report says" in capsys.readouterr().err
    assert (root / "page.md").read_text(encoding="utf-8") == PAGE
    assert main(words) == 0
    assert (root / "page.md").read_text(encoding="utf-8") == WRITTEN
    assert main([*words, "--check"]) == 0


def test_what_a_mark_asks_for_and_is_not_there(root):
    with pytest.raises(InputError, match="kind of table is 'medians'; valid: 'means', 'differences', 'classes'"):
        with_tables("<!-- medians of sweep -->\n\n", root)
    with pytest.raises(InputError, match=r"report\.md is not there; rmadapter report other writes it"):
        with_tables("<!-- means of other -->\n\n", root)
    (root / "sweep/report/report.md").write_text("# Nothing\n", encoding="utf-8")
    with pytest.raises(InputError, match="has no table of means"):
        with_tables("<!-- means of sweep -->\n\n", root)
