"""The search that the test bed's training configuration comes from.

    python -m rmadapter.testbed.search --out bench/results/testbed/search

Groups that neither the demo nor the claim shows, in one style, with their base classes only: the first half of those
is trained on, the other half stands for new classes. First epochs, learning rate and scale of the single-branch
adapter, then, with the best of them and with two slower ones, the weights of RMAdapter's losses; then the first search
again for MMA, so that comparisons can give it its best too. The best has the highest harmonic mean, a mean over groups
and seeds.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
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
from rmadapter.testbed.runs import COMPARED, HINT, TestbedRun, run_planned

DATA = ("emoji_activities", "emoji_symbols")
STYLE = "fluent"
SEEDS = (1, 2, 3)
EPOCHS = (5,)  # as in the field's protocol
LEARNING_RATES = (0.005, 0.015, 0.05, 0.15, 0.5)
SCALES = (0.01, 0.03, 0.1, 0.3)
MMA = {**COMPARED["single"], "shared_layer": True, "activation": "relu"}
RECONSTRUCTION = (0.0, 1.0, 10.0, 30.0, 100.0)  # lambda1 = lambda2
CONSISTENCY = (0.0, 1.0, 3.0, 10.0, 30.0)  # lambda3; lambda4 is 2.5 times it
# At the best rate a reconstruction weight of 10 diverges; a slower one shows what such weights do.
SLOWER, SLOWER_CONSISTENCY = (0.05, 0.015), (0.0, 1.0, 3.0)


def base_only(data: ImageData) -> ImageData:
    """The base classes as a data set of their own, whose base and new classes are its halves."""
    parts: dict[str, Any] = {part: base_new_split(getattr(data, part), "base") for part in ("train", "val", "test")}
    return dataclasses.replace(
        data, name=f"{data.name} base classes", retention=data.retention and base_only(data.retention), **parts
    )


def plan_training(method: str, settings: dict[str, Any]) -> list[TestbedRun]:
    """A method without losses of its own: epochs x learning rate x scale."""
    return [
        TestbedRun(f"{method}/epochs{epochs}-lr{lr}-scale{scale}/{data}-seed{seed}", data, STYLE, seed, changes)
        for epochs, lr, scale in itertools.product(EPOCHS, LEARNING_RATES, SCALES)
        for changes in [{**settings, "epochs": epochs, "lr": lr, "scale": scale}]
        for data, seed in itertools.product(DATA, SEEDS)
    ]


def slower(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each learning rate of ``SLOWER`` the first of the ranked ``rows``."""
    return [next(row for row in rows if row["lr"] == rate) for rate in SLOWER]


def plan_losses(best: dict[str, Any], consistency: tuple[float, ...] = CONSISTENCY) -> list[TestbedRun]:
    """RMAdapter: lambda1 = lambda2 x lambda3, lambda4 = 2.5 lambda3, with the single-branch adapter's ``best``."""
    training = {name: best[name] for name in ("epochs", "lr", "scale")}
    return [
        TestbedRun(f"{name}-consistency{third:g}/{data}-seed{seed}", data, STYLE, seed, changes)
        for seed in SEEDS
        for first, third in itertools.product(RECONSTRUCTION, consistency)
        for name in [f"rmadapter/lr{best['lr']}-scale{best['scale']}-reconstruction{first:g}"]
        for changes in [{**training, "lambda1": first, "lambda2": first, "lambda3": third, "lambda4": 2.5 * third}]
        for data in DATA
    ]


def ranking(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Settings with the means of what they came to, the best first.

    Those of which a run diverged or, compared with the others, is not done are left out.
    """
    by_settings: dict[tuple, list[dict[str, Any]]] = {}
    for result in results:
        by_settings.setdefault(tuple(sorted(result["settings"].items())), []).append(result)
    rows = []
    for settings, members in by_settings.items():
        if not any("diverged" in member for member in members):
            parts = members[0]["accuracy"]
            means = {part: statistics.fmean(member["accuracy"][part] for member in members) for part in parts}
            norms = {
                key: statistics.fmean(member["second_half"].get(key, 0) for member in members)
                for key in members[0]["second_half"]
            }
            rows.append({**dict(settings), **means, "runs": len(members), **norms})
    most = max((row["runs"] for row in rows), default=0)
    return sorted((row for row in rows if row["runs"] == most), key=lambda row: -row["hm"])


def table(title: str, rows: list[dict[str, Any]], names: tuple[str, ...]) -> Table:
    """The settings ``names`` and the accuracies in percent."""
    parts = ("base", "new", "hm", "retained_base", "retained_new")
    cells = [
        (*(f"{row[name]:g}" for name in names), *(f"{row[part]:.2f}" for part in parts), str(row["runs"]))
        for row in rows
    ]
    return Table(title, (*names, *parts, "runs"), cells, words=(), aligned=False)


def search(out: Path, budget: float | None = None, worker: str = "1/1") -> str:
    """Make the runs that are missing, as ``run_planned``; the tables, which are written to ``out`` too.

    Raises:
        InputError: the runs of the single-branch adapter are not all done, on which the others depend.
    """
    data = {(name, STYLE): base_only(load_emoji(name, STYLE)) for name in DATA}
    plan = plan_training("single", COMPARED["single"])
    done = run_planned(plan, out, data=data, budget=budget, worker=worker)
    if len(done) < len(plan):
        raise InputError(f"{len(done)} of {len(plan)} runs of the single branch are done; the same command goes on")
    single = ranking(done)
    losses = ranking(run_planned(plan_losses(single[0]), out, data=data, budget=budget, worker=worker))
    mma = ranking(run_planned(plan_training("mma", MMA), out, data=data, budget=budget, worker=worker))
    plan = [run for best in slower(single) for run in plan_losses(best, SLOWER_CONSISTENCY)]
    slow = ranking(run_planned(plan, out, data=data, budget=budget, worker=worker))
    training, weights = ("epochs", "lr", "scale"), ("lr", "scale", "lambda1", "lambda3")
    lead = (
        f"Base classes of {', '.join(DATA)} drawn by {STYLE}, half of them as new; accuracies in percent, hm is the "
        "mean of the runs' harmonic means, by which rows are sorted."
    )
    blocks = (
        table("Single branch", single, training),
        table("RMAdapter, lambda2 = lambda1, lambda4 = 2.5 lambda3", losses, weights),
        "At slower rates:",
        table("", slow, weights),
        table("MMA", mma, training),
    )
    text = Document("Search of the test bed's training configuration", lead, blocks).markdown()
    write_text(out / "tables.md", text)
    return text


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
