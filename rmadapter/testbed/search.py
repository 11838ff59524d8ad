"""The search that the test bed's training configuration comes from.

    python -m rmadapter.testbed.search --out bench/results/testbed/search

Groups that the demo does not show, in one style, with their base classes only: the first half of those is trained on,
the other half stands for new classes (pseudo-new). With half of the classes an epoch has half of the steps, and what a
learning rate does depends on how often it does it: runs here have twice the test bed's epochs.

A setting is judged as the tables judge a method, by what it gains and by what it keeps, each a mean over groups and
seeds; ``rmadapter.sweeps.keeping`` has the rule.

First learning rate x weight of the consistency losses, without reconstruction, with one seed; the best of them with all
seeds; at the best of these the scale, and then the weight of reconstruction. Then MMA's learning rate and scale in the
same way, so that comparisons can give it its best too.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmadapter.config.arguments import run_module
from rmadapter.config.paths import PathText
from rmadapter.data import ImageData, base_new_split
from rmadapter.data.emoji.emoji_data import load_emoji
from rmadapter.errors import InputError
from rmadapter.files import write_text
from rmadapter.reports.document import Document
from rmadapter.reports.tables import Table
from rmadapter.sweeps.keeping import MARGINS, gained, place, shortfall
from rmadapter.testbed.runs import COMPARED, HINT, TestbedRun, run_planned

DATA = ("emoji_activities", "emoji_symbols")
STYLE = "fluent"
SEEDS = (1, 2, 3)
EPOCHS = 10
LEARNING_RATES = (0.0015, 0.005, 0.015, 0.05, 0.15)
SCALE, SCALES = 0.03, (0.01, 0.03, 0.1)  # the gradient makes up for it (``branch_grad_scale``): it matters less
CONSISTENCY = (0.0, 1.0, 3.0, 10.0, 30.0)  # lambda3; lambda4 is 2.5 times it
RECONSTRUCTION = (1.0, 10.0, 30.0)  # lambda1 = lambda2
# Of a grid with one seed so many settings are tried with all of them.
FINALISTS, MMA_FINALISTS = 4, 2
MMA = {**COMPARED["single"], "shared_layer": True, "activation": "relu"}
PARTS = ("base", "new", "hm", "retained_base", "retained_new")


def base_only(data: ImageData) -> ImageData:
    """The base classes as a data set of their own, whose base and new classes are its halves."""
    parts: dict[str, Any] = {part: base_new_split(getattr(data, part), "base") for part in ("train", "val", "test")}
    return dataclasses.replace(
        data, name=f"{data.name} base classes", retention=data.retention and base_only(data.retention), **parts
    )


def plan_zeroshot() -> list[TestbedRun]:
    """What every setting is held against."""
    return [TestbedRun(f"zeroshot/{data}", data, STYLE, None, {}) for data in DATA]


def plan(method: str, settings: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[TestbedRun]:
    """Every one of ``settings`` on each group with each of ``seeds``; a setting is ``changes`` of the test bed's."""
    return [
        TestbedRun(f"{method}/{_label(changes)}/{data}-seed{seed}", data, STYLE, seed, {**changes, "epochs": EPOCHS})
        for seed, changes, data in itertools.product(seeds, settings, DATA)
    ]


def _label(changes: Mapping[str, Any]) -> str:
    names = {"lr": "lr", "scale": "scale", "lambda1": "reconstruction", "lambda3": "consistency"}
    return "-".join(f"{short}{changes[name]:g}" for name, short in names.items())


def grid() -> list[dict[str, Any]]:
    """The single branch with and without consistency."""
    return [
        {**weights(0, consistency), "lr": lr, "scale": SCALE, "reconstruct": False}
        for lr, consistency in itertools.product(LEARNING_RATES, CONSISTENCY)
    ]


def mma_grid() -> list[dict[str, Any]]:
    """MMA, which has no losses of its own."""
    return [{**MMA, "lr": lr, "scale": SCALE} for lr in LEARNING_RATES]


def weights(reconstruction: float, consistency: float) -> dict[str, float]:
    """The loss's weights as the search varies them."""
    return {
        "lambda1": reconstruction,
        "lambda2": reconstruction,
        "lambda3": consistency,
        "lambda4": 2.5 * consistency,
    }


@dataclass(frozen=True)
class Judged:
    """A setting, what it came to in the mean over groups and seeds, and what that is worth.

    Attributes:
        settings: learning rate, scale and the loss's weights.
        accuracy: percent, by ``PARTS``.
        gain: what ``keeping.gained`` makes of it.
        runs: number of runs.
    """

    settings: dict[str, float]
    accuracy: dict[str, float]
    gain: dict[str, float]
    runs: int

    @property
    def shortfall(self) -> float:
        """What ``keeping.shortfall`` makes of the gain, percentage points."""
        return shortfall(self.gain)


def judge(
    results: Sequence[dict[str, Any]], zeroshot: Sequence[dict[str, Any]], parts: Sequence[str] = PARTS
) -> list[Judged]:
    """The settings of ``results``, the best first, by their accuracies ``parts``.

    Those of which a run diverged or, compared with the others, is not done are left out.
    """
    mark = _means([result["accuracy"] for result in zeroshot], parts)
    by_settings: dict[tuple, list[dict[str, Any]]] = {}
    for result in results:
        by_settings.setdefault(tuple(sorted(result["settings"].items())), []).append(result)
    found = []
    for settings, members in by_settings.items():
        if not any("diverged" in member for member in members):
            means = _means([member["accuracy"] for member in members], parts)
            found.append(Judged(dict(settings), means, gained(means, mark), len(members)))
    most = max((one.runs for one in found), default=0)
    worth = "hm" if "hm" in parts else "base"
    return sorted((one for one in found if one.runs == most), key=lambda one: place(one.gain, one.accuracy[worth]))


def _means(accuracies: Sequence[Mapping[str, float]], parts: Sequence[str] = PARTS) -> dict[str, float]:
    return {part: statistics.fmean(accuracy[part] for accuracy in accuracies) for part in parts}


def the_mark(zeroshot: Sequence[dict[str, Any]]) -> str:
    """What zero-shot has, in a sentence."""
    accuracy = _means([result["accuracy"] for result in zeroshot])
    return f"Zero-shot has {', '.join(f'{part} {accuracy[part]:.2f}' for part in PARTS)}."


def table(title: str, rows: Sequence[Judged], names: Sequence[str]) -> Table:
    """The settings ``names``, the accuracies in percent, and what they gain on zero-shot.

    All rows have the parts of the first one, of none ``PARTS``.
    """
    parts = tuple(rows[0].accuracy) if rows else PARTS
    gained_parts = tuple(rows[0].gain) if rows else ("base", "new", "retained")
    cells = [
        (
            *(f"{row.settings[name]:g}" for name in names),
            *(f"{row.accuracy[part]:.2f}" for part in parts),
            *(f"{value:+.2f}" for value in row.gain.values()),
            f"{row.shortfall:.2f}",
            str(row.runs),
        )
        for row in rows
    ]
    gains = (f"{part} - zero-shot" for part in gained_parts)
    return Table(title, (*names, *parts, *gains, "shortfall", "runs"), cells, words=(), aligned=False)


def on_base_classes(
    out: Path, budget: float | None, worker: str = "1/1"
) -> Callable[[list[TestbedRun]], list[dict[str, Any]]]:
    """A function that makes planned runs on the base classes alone, as ``run_planned``, and returns all their results.

    It raises InputError where they are not all done, on which others depend.
    """
    data = {(name, STYLE): base_only(load_emoji(name, STYLE)) for name in DATA}

    def made(planned: list[TestbedRun]) -> list[dict[str, Any]]:
        done = run_planned(planned, out, data=data, budget=budget, worker=worker)
        if len(done) < len(planned):
            raise InputError(f"{len(done)} of {len(planned)} runs are done; the same command goes on")
        return done

    return made


def search(out: Path, budget: float | None = None, worker: str = "1/1") -> str:
    """Make the runs that are missing, as ``run_planned``; the tables, which are written to ``out`` too.

    Raises:
        InputError: runs are not all done, on which the others depend.
    """
    made = on_base_classes(out, budget, worker)
    zeroshot = made(plan_zeroshot())

    def explored(method: str, settings: list[dict[str, Any]], finalists: int) -> tuple[list[Judged], ...]:
        """The whole grid with one seed, the best of it with all, and the scales of the best."""
        first = judge(made(plan(method, settings, SEEDS[:1])), zeroshot)
        best = [_changes(one, settings) for one in first[:finalists]]
        second = judge(made(plan(method, best, SEEDS)), zeroshot)
        scaled = [{**_changes(second[0], settings), "scale": scale} for scale in SCALES]
        return first, second, judge(made(plan(method, scaled, SEEDS)), zeroshot)

    first, finalists, scales = explored("single", grid(), FINALISTS)
    best = scales[0].settings
    training = {name: best[name] for name in ("lr", "scale")}
    settings = [{**training, **weights(number, best["lambda3"])} for number in RECONSTRUCTION]
    reconstruction = judge(made(plan("rmadapter", settings, SEEDS)), zeroshot)
    mma_first, mma_finalists, mma_scales = explored("mma", mma_grid(), MMA_FINALISTS)
    named = ("lr", "scale", "lambda3")
    lead = (
        f"Base classes of {', '.join(DATA)} drawn by {STYLE}, half of them as new, {EPOCHS} epochs; accuracies in "
        f"percent, means over groups and seeds, hm the mean of the runs' harmonic means. {the_mark(zeroshot)} A "
        f"setting may be {MARGINS['new']:g} below it in new and {MARGINS['retained']:g} in retained accuracy, the mean "
        "of both; what it is further below is its shortfall. Rows are sorted by shortfall, then by hm."
    )
    blocks = (
        table("Without reconstruction, the best with all seeds; lambda4 = 2.5 lambda3", finalists, named),
        table("The scales of the best of these", scales, named),
        table("RMAdapter: reconstruction at the best of these, lambda2 = lambda1", reconstruction, ("lambda1", *named)),
        table("MMA, the best with all seeds", mma_finalists, named[:2]),
        table("MMA, the scales of the best of these", mma_scales, named[:2]),
        table("Without reconstruction, the whole grid with one seed", first, named),
        table("MMA, the whole grid with one seed", mma_first, named[:2]),
    )
    text = Document("Search of the test bed's training configuration", lead, blocks).markdown()
    write_text(out / "tables.md", text)
    return text


def _changes(one: Judged, settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of ``settings`` the one that ``one`` is the judgement of."""
    return next(
        changes
        for changes in settings
        if all(changes[name] == one.settings[name] for name in ("lr", "scale", "lambda3"))
    )


@dataclass
class TestbedSearchConfig:
    """The search that the test bed's training configuration comes from.

    Args:
        out: folder of the results
        seconds: begin no run after so many seconds
        worker: I/N: every N-th run from the I-th, for N processes at once
    """

    out: PathText = "bench/results/testbed/search"
    seconds: float | None = None
    worker: str = "1/1"


def run_testbed_search(config: TestbedSearchConfig) -> None:
    """Make the runs that are missing and print the tables."""
    print(search(Path(config.out), config.seconds, config.worker))


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status is what ``commands.guarded`` says."""
    return run_module(
        TestbedSearchConfig, run_testbed_search, argv, prog="python -m rmadapter.testbed.search", hint=HINT
    )


if __name__ == "__main__":
    sys.exit(main())
