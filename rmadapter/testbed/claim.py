"""What RMAdapter is worth on the test bed: single branch against RMAdapter, paired, and what of it reconstruction is.

    python -m rmadapter.testbed.claim --out bench/results/testbed/claim

Ten seeds, four groups, two styles that pretraining has not seen; base, new, harmonic mean and retention. A run sees the
same images, in the same order, with both methods, so they are compared run by run; what differs between groups is more
than between seeds, so the groups are the unit of replication: differences are means over a group's seeds and styles,
with their standard error over the groups. The single branch with RMAdapter's consistency loss is the control, with the
first seeds: what RMAdapter has beyond it is reconstruction's. Runs are ordered so that the first are balanced over
methods and groups.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmadapter.config.arguments import run_module
from rmadapter.config.paths import PathText
from rmadapter.errors import check_range
from rmadapter.files import write_text
from rmadapter.reports.document import Document
from rmadapter.reports.paired import Estimate, Key, subtract, unit_means
from rmadapter.reports.tables import Table
from rmadapter.testbed.runs import COMPARED, HINT, TestbedRun, run_planned

DATA = ("emoji_animals", "emoji_food", "emoji_objects", "emoji_travel")
STYLES = ("fluent", "emojione")
SEEDS = range(1, 11)
CONTROL = "single+consistency"
CONTROL_SEEDS = 4  # 32 triples
CONTROLLED = {**COMPARED, CONTROL: {"reconstruct": False, "lambda1": 0.0, "lambda2": 0.0}}
Found = dict[Key, dict[str, dict[str, float]]]  # accuracies by method
PARTS = {
    "base": "base",
    "new": "new",
    "hm": "HM",
    "retained_base": "retained base",
    "retained_new": "retained new",
}


def plan() -> list[TestbedRun]:
    """Zero-shot once, then all methods of a seed, group by group, before the next seed."""
    zeroshot = [TestbedRun(f"zeroshot/{data}-{style}", data, style, None, {}) for style in STYLES for data in DATA]
    trained = [
        TestbedRun(f"{method}/{data}-{style}-seed{seed}", data, style, seed, CONTROLLED[method])
        for seed, style, data, method in itertools.product(SEEDS, STYLES, DATA, CONTROLLED)
        if method != CONTROL or seed <= CONTROL_SEEDS
    ]
    return zeroshot + trained


def complete(results: Sequence[dict[str, Any]]) -> Found:
    """(data, style, seed) -> method -> accuracy, where single branch and RMAdapter are done and neither diverged."""
    found: Found = {}
    for result in results:
        if result["seed"] is not None and "diverged" not in result:
            key = Key(result["data"], result["style"], result["seed"])
            found.setdefault(key, {})[result["method"]] = result["accuracy"]
    return {key: methods for key, methods in found.items() if methods.keys() >= COMPARED.keys()}


def summary(results: Sequence[dict[str, Any]]) -> str:
    """Tables in Markdown: accuracies by method, and paired differences, over both styles and for each."""
    paired = complete(results)
    title = "Single branch against RMAdapter on the test bed"
    if not paired:
        return Document(title, "No seed is complete yet.", ()).markdown()
    zeroshot = {Key(r["data"], r["style"], None): r["accuracy"] for r in results if r["seed"] is None}
    data, styles, seeds = (sorted(set(names)) for names in zip(*paired, strict=True))
    lead = (
        f"{len(paired)} pairs of runs of {len(DATA) * len(STYLES) * len(SEEDS)}: seeds {seeds[0]} to {seeds[-1]}, "
        f"{', '.join(data)}, drawn by {' and '.join(styles)}. Percent; ± is the standard error over the groups "
        "(n - 1), of means over seeds and styles."
    )
    blocks: list[Table | str] = []
    for style in (None, *STYLES):
        pairs = {key: methods for key, methods in paired.items() if style in (None, key[1])}
        if pairs:
            untrained = {key: accuracy for key, accuracy in zeroshot.items() if style in (None, key[1])}
            drawn = f"Drawn by {style}" if style else "Both styles"
            single = (("rmadapter", "single"),)
            blocks.append(_table(f"{drawn}, {len(pairs)} pairs", pairs, tuple(COMPARED), single, untrained))
    controlled = {key: methods for key, methods in paired.items() if CONTROL in methods}
    if controlled:
        what = f"What of it is consistency and what reconstruction, {len(controlled)} triples, both styles"
        contrasts = ((CONTROL, "single"), ("rmadapter", CONTROL))
        blocks.append(_table(what, controlled, tuple(CONTROLLED), contrasts))
    norms = [
        r["second_half"]
        for r in results
        if r.get("method") == "rmadapter" and "grad_norm_reconstruction" in r["second_half"]
    ]
    if norms:
        means = [
            statistics.fmean(run[f"grad_norm_{term}"] for run in norms) for term in ("cross_entropy", "reconstruction")
        ]
        blocks.append(
            f"Norm of the gradient to w_down, mean over the second half of RMAdapter's {len(norms)} runs: "
            f"{means[0]:.3g} from cross-entropy, {means[1]:.3g} from reconstruction with its weights."
        )
    return Document(title, lead, blocks).markdown()


def _table(
    title: str,
    pairs: Found,
    methods: Sequence[str],
    contrasts: Sequence[tuple[str, str]],
    zeroshot: dict[Key, dict[str, float]] | None = None,
) -> Table:
    """A row for zero-shot and each method, then for each contrast the paired difference and its sign by group."""
    rows: dict[str, list[str]] = {}
    if zeroshot:
        rows["zero-shot"] = [_over_groups(_values(zeroshot, part)).text() for part in PARTS]
    found = {method: {key: by_method[method] for key, by_method in pairs.items()} for method in methods}
    for method in methods:
        rows[method] = [_over_groups(_values(found[method], part)).text() for part in PARTS]
    for one, other in contrasts:
        differences = [_over_groups(subtract(_values(found[one], part), _values(found[other], part))) for part in PARTS]
        rows[f"{one} - {other}"] = [estimate.text("+") for estimate in differences]
        rows[f"groups in which {one} is higher"] = [f"{d.higher} of {d.units}" for d in differences]
    lines = [(name, *cells) for name, cells in rows.items()]
    return Table(title, ("", *PARTS.values()), lines, aligned=False)


def _values(accuracies: dict[Key, dict[str, float]], part: str) -> dict[Key, float]:
    return {key: accuracy[part] for key, accuracy in accuracies.items()}


def _over_groups(values: dict[Key, float]) -> Estimate:
    return Estimate.of(unit_means(values))


@dataclass
class ClaimConfig:
    """What RMAdapter is worth on the test bed: single branch against RMAdapter, paired.

    Args:
        out: folder of the results
        seconds: begin no run after so many seconds
        seeds: the first so many seeds
        worker: I/N: every N-th run from the I-th, for N processes at once
    """

    out: PathText = "bench/results/testbed/claim"
    seconds: float | None = None
    seeds: int = len(SEEDS)
    worker: str = "1/1"

    def __post_init__(self) -> None:
        check_range("seeds", self.seeds, 1, len(SEEDS))


def run_claim(config: ClaimConfig) -> None:
    """Make the runs that are missing, write the summary and print it."""
    runs = [run for run in plan() if run.seed is None or run.seed <= config.seeds]
    out = Path(config.out)
    text = summary(run_planned(runs, out, budget=config.seconds, worker=config.worker))
    write_text(out / "summary.md", text)
    print(text)


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status is what ``commands.guarded`` says."""
    return run_module(ClaimConfig, run_claim, argv, prog="python -m rmadapter.testbed.claim", hint=HINT)


if __name__ == "__main__":
    sys.exit(main())
