"""``rmadapter eval``: the evaluation, and what is drawn and shown of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rmadapter.evaluation.answers import PartAnswers
from rmadapter.evaluation.evaluate import EvalConfig
from rmadapter.evaluation.stored import evaluate_stored
from rmadapter.files import write_csv
from rmadapter.reports.details import write_details
from rmadapter.reports.tables import Table, number


def evaluate_and_show(config: EvalConfig) -> list[dict[str, Any]]:
    """Evaluate as ``config`` says; what results.json holds, of each strength.

    With ``details`` their files are written. Several strengths are printed as a table, and written to ``out`` as
    strength.csv and, where matplotlib is there, strength.png.

    Raises:
        InputError: everything ``evaluate_stored`` raises; a file that cannot be written.
    """
    kept: dict[str, PartAnswers] | None = {} if config.details else None
    results = evaluate_stored(config, kept)
    if config.details and kept is not None:
        for file in write_details(Path(config.details), kept, results[0]):
            print(f"details: {file}")
    if len(results) > 1:
        _show_strengths(config, results)
    return results


def _show_strengths(config: EvalConfig, results: list[dict[str, Any]]) -> None:
    lines = dict(sorted(zip(config.strengths, results, strict=True)))
    parts = list(results[0]["accuracy"])
    rows = [
        [f"{strength:g}", *(number(found["accuracy"][part]) for part in parts)] for strength, found in lines.items()
    ]
    print(Table("", ("strength", *parts), rows, words=()).markdown())
    if config.out is None:
        return
    out = Path(config.out)
    accuracies = {strength: found["accuracy"] for strength, found in lines.items()}
    values = [[strength, *(accuracy[part] for part in parts)] for strength, accuracy in accuracies.items()]
    write_csv(out / "strength.csv", ("strength", *parts), values)
    print(f"written: {out / 'strength.csv'}")
    try:
        from rmadapter.reports.strength_plot import draw_strengths
    except ImportError:
        print("There is no plot: matplotlib is missing; pip install 'rmadapter[plot]'")
        return
    print(f"written: {draw_strengths(accuracies, out / 'strength.png')}")
