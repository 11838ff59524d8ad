"""Many short training runs in one process, each kept as a line of results.jsonl; what the search uses.

Renderings are made once a process and kept, and a run whose result is there is not made again: a stopped command goes
on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rmadapter.clip.backbone import load_backbone
from rmadapter.clip.names import MODEL
from rmadapter.config import LossConfig, RMAdapterConfig, TrainConfig
from rmadapter.config.arguments import parse_arguments
from rmadapter.data import ImageData
from rmadapter.data.emoji import TRAIN_CONFIG
from rmadapter.errors import InputError
from rmadapter.evaluation.evaluate import EvalConfig, run_eval
from rmadapter.evaluation.results_table import RESULTS_TABLE, ResultsTable
from rmadapter.methods.options import configure
from rmadapter.runtime import git_revision
from rmadapter.training.adapter_run import train
from rmadapter.training.run_errors import DivergedError

ADAPTER_KEYS = {item.name for item in dataclasses.fields(RMAdapterConfig)}
LOSS_KEYS = {item.name for item in dataclasses.fields(LossConfig)}


def train_config(data: str, style: str, seed: int, method: str | None = None, **changes: Any) -> TrainConfig:
    """The test bed's configuration with ``changes``: fields of the run, of its adapters and of its loss by name.

    That is RMAdapter's, or the one of ``method``.
    """
    if method is None:
        config = parse_arguments(TrainConfig, ["--config", str(TRAIN_CONFIG), "--data", data], prog="train")
    else:
        config = configure(method, ["--data", data])
    adapter = {name: value for name, value in changes.items() if name in ADAPTER_KEYS}
    loss = {name: value for name, value in changes.items() if name in LOSS_KEYS}
    others = {name: value for name, value in changes.items() if name not in ADAPTER_KEYS | LOSS_KEYS}
    return dataclasses.replace(
        config,
        style=style,
        seed=seed,
        adapter=dataclasses.replace(config.adapter, **adapter),
        loss=dataclasses.replace(config.loss, **loss),
        **others,
    )


# What differs from the test bed's configuration, which is RMAdapter's.
COMPARED: dict[str, dict[str, Any]] = {
    "single": {"reconstruct": False, "lambda1": 0.0, "lambda2": 0.0, "lambda3": 0.0, "lambda4": 0.0},
    "rmadapter": {},
}
# What an experiment that was stopped needs to go on.
HINT = "; the same command goes on"


@dataclass(frozen=True)
class TestbedRun:
    """One run: its ``name`` in the experiment's table, ``seed`` None for zero-shot.

    ``changes`` are of the test bed's configuration, which is RMAdapter's, or of that of ``method``.
    """

    name: str
    data: str
    style: str
    seed: int | None
    changes: dict[str, Any]
    method: str | None = None


def run_planned(
    plan: Sequence[TestbedRun],
    out: Path,
    *,
    data: dict[tuple[str, str], ImageData] | None = None,
    budget: float | None = None,
    worker: str = "1/1",
) -> list[dict[str, Any]]:
    """Make the runs of ``plan`` that are not in the table in ``out`` yet, in order; returns all results that are there.

    Several processes may do so at once.

    Args:
        data: data sets by name and style, in place of those the names mean.
        budget: seconds after which no further run begins.
        worker: "2/3" makes the second of every three runs, for three processes at once.
    """
    began = time.perf_counter()
    number, _, count = worker.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(f"worker is {worker!r}; valid: I/N with I from 1 to N")
    table = ResultsTable(out / RESULTS_TABLE)
    _check_base(table, plan)
    missing = [run for run in plan[int(number) - 1 :: int(count)] if not table.of(run.name)]
    print(f"{len(missing)} of {len(plan)} runs to make", flush=True)
    for place, run in enumerate(missing, 1):
        elapsed = time.perf_counter() - began
        if budget is not None and elapsed > budget:
            print(f"{elapsed:.0f} s are over; the same command goes on with the other {len(missing) - place + 1} runs")
            break
        results = _run(run, (data or {}).get((run.data, run.style)))
        table.add(run.name, {None: results})
        percent = ", ".join(f"{part} {value:.1f}" for part, value in results["accuracy"].items())
        print(f"{place} of {len(missing)}: {run.name}: {percent} ({time.perf_counter() - began:.0f} s)", flush=True)
    return [kept.results for run in plan for kept in table.of(run.name).values()]


@cache
def _base_hash() -> str:
    return load_backbone(MODEL).base_hash


def _check_base(table: ResultsTable, plan: Sequence[TestbedRun]) -> None:
    """Refuse results of other weights of the small CLIP: they would be judged together with these.

    Raises:
        InputError: there are such.
    """
    found = {kept.results.get("base_hash") for run in plan for kept in table.of(run.name).values()} - {None}
    own = _base_hash() if found else None
    other = next((one for one in sorted(map(str, found)) if one != own), None)
    if other is not None:
        raise InputError(
            f"out has {str(table.path)!r} with results of another {MODEL} (base_hash {other}, this one's is {own}); "
            "valid: a folder without"
        )


def _run(run: TestbedRun, data: ImageData | None) -> dict[str, Any]:
    """The results of one run, with its settings."""
    with tempfile.TemporaryDirectory() as scratch, open(Path(scratch) / "log.txt", "w") as log:
        folder = Path(scratch) / "run"
        with contextlib.redirect_stdout(log):
            if run.seed is None:
                zeroshot = EvalConfig(method="zeroshot", data=run.data, style=run.style, classes="base_new", workers=0)
                return run_eval(zeroshot, data=data)
            fixed = {"out": str(folder), "max_bad_steps": 0}
            config = train_config(run.data, run.style, run.seed, run.method, **fixed, **run.changes)
            try:
                results = train(config, data=data)
            except DivergedError as error:
                results = {
                    "commit": git_revision(),
                    "diverged": str(error),
                    "accuracy": {},
                    "data": run.data,
                    "style": run.style,
                    "seed": run.seed,
                }
    weights = {name: getattr(config.loss, name) for name in ("lambda1", "lambda2", "lambda3", "lambda4")}
    settings = {"epochs": config.epochs, "lr": config.lr, "scale": config.adapter.scale, **weights}
    return {**results, "settings": settings}
