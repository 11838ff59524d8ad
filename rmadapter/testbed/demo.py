"""``make demo``: few-shot adaptation on real drawings, from nothing to a table and plots, in minutes on two cores.

    python -m rmadapter.testbed.demo --out demo

The bundled small CLIP is adapted to half of a group's emoji, drawn in a style it has never seen, with three seeds,
by a single-branch adapter and by RMAdapter. Both, and zero-shot CLIP, then classify new renderings of those classes
(base), the other half (new), and both halves drawn in a style that nobody has seen (retained). Runs that are there
are kept.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rmadapter.config.arguments import run_module
from rmadapter.config.paths import PathText
from rmadapter.data.emoji import DATA
from rmadapter.data.emoji.atlas import ONE_DRAWING
from rmadapter.errors import check_choice, check_range
from rmadapter.evaluation.evaluate import EvalConfig, run_eval
from rmadapter.reports.run_report import report
from rmadapter.testbed.runs import COMPARED, HINT, train_config
from rmadapter.training.adapter_run import train


@dataclass
class DemoConfig:
    """Few-shot adaptation of a small CLIP to emoji, from nothing to a table.

    Args:
        out: folder for runs and report
        data: bundled data set: emoji_animals, emoji_food, ...
        style: whose drawings; pretraining has seen noto and twemoji
        seeds: number of seeds, 1 to N
        epochs: passes over the training images; default: the test bed's
        shortcuts: take the training step's shortcuts; --no-shortcuts computes everything anew at every step
    """

    out: PathText = "demo"
    data: str = "emoji_food"
    style: str = "fluent"
    seeds: int = 3
    epochs: int | None = None
    shortcuts: bool = True

    def __post_init__(self) -> None:
        check_choice("data", self.data, DATA)
        check_choice("style", self.style, ONE_DRAWING)
        check_range("seeds", self.seeds, 1)
        if self.epochs is not None:
            check_range("epochs", self.epochs, 1)


def run_demo(config: DemoConfig) -> Path:
    """Run all of the demo that is not done yet; returns the folder of the report.

    Raises:
        InputError: ``config.out`` cannot be written, or holds runs with other settings.
    """
    began = time.perf_counter()
    out = Path(config.out)
    print(f"{config.data} drawn by {config.style}, a small CLIP that knows noto and twemoji")
    zeroshot = out / "runs" / "zeroshot"
    if not (zeroshot / "results.json").exists():
        with _log(zeroshot / "log.txt"):
            run_eval(
                EvalConfig(
                    method="zeroshot",
                    data=config.data,
                    style=config.style,
                    classes="base_new",
                    workers=0,
                    out=str(zeroshot),
                )
            )
    # Nothing is augmented, so that one view of an image serves all epochs.
    changes: dict[str, Any] = {
        "shortcuts": config.shortcuts,
        "views": int(config.shortcuts),
        "cache_dir": str(out / "cache"),
    }
    if config.epochs is not None:
        changes["epochs"] = config.epochs
    for seed in range(1, config.seeds + 1):
        for name, settings in COMPARED.items():
            folder = out / "runs" / f"{name}-seed{seed}"
            print(f"{name}, seed {seed}: {folder}", flush=True)
            run = train_config(config.data, config.style, seed, out=str(folder), resume=True, **settings, **changes)
            with _log(folder.with_suffix(".log")):
                train(run)
    found = report([out / "runs"], out / "report")
    print(f"\n{found.text}\n")
    plots = ", ".join(str(file) for file in found.files if file.suffix == ".png")
    print(f"results: {out / 'report' / 'report.csv'}; plots: {plots}")
    print(f"{time.perf_counter() - began:.0f} s")
    return out / "report"


@contextlib.contextmanager
def _log(path: Path) -> Iterator[None]:
    """What a step prints goes to a file, so that the terminal shows the demo's own lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status is what ``commands.guarded`` says."""
    # At these sizes a second thread gives little, and beside other work its waiting costs several times what it gives.
    torch.set_num_threads(1)
    return run_module(DemoConfig, run_demo, argv, prog="python -m rmadapter.testbed.demo", hint=HINT)


if __name__ == "__main__":
    sys.exit(main())
