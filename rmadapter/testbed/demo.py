"""``make demo``: few-shot adaptation on real images, from nothing to a table, in minutes on two cores.

    python -m rmadapter.testbed.demo --out demo

It writes the scanned digits as image folders, trains a small CLIP on one half of them, adapts it to five digits of
the other half with three seeds, and classifies those five (base) and the five that were left out (new): zero-shot,
with a single-branch adapter, with RMAdapter. What is there already is not made again.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rmadapter.arguments import parse_arguments
from rmadapter.config import LossConfig, RMAdapterConfig, TrainConfig
from rmadapter.errors import InputError, check_range
from rmadapter.evaluation import EvalConfig, run_eval
from rmadapter.report import report
from rmadapter.testbed.digits import write_digits
from rmadapter.testbed.small_clip import pretrain
from rmadapter.training import train


@dataclass
class DemoConfig:
    """Few-shot adaptation of a small CLIP to scanned digits, from nothing to a table.

    Args:
        out: folder for data, model, runs and report
        seeds: number of seeds, 1 to N
        epochs: passes over the 16 images of each of five classes
        pretraining_steps: steps of the small CLIP's own training
    """

    out: str = "demo"
    seeds: int = 3
    epochs: int = 20
    pretraining_steps: int = 600

    def __post_init__(self) -> None:
        for name in ("seeds", "epochs", "pretraining_steps"):
            check_range(name, getattr(self, name), 1)


def run_demo(config: DemoConfig) -> Path:
    """Run all of the demo that is not done yet; returns the folder of the report.

    Raises:
        InputError: ``config.out`` cannot be written, or holds runs with other settings.
    """
    began = time.perf_counter()
    out = Path(config.out)
    digits = write_digits(out / "data")
    print(f"images: {digits.digits}")
    clip = pretrain(digits.pretrain, out / "clip", steps=config.pretraining_steps)
    print(f"small CLIP: {clip}")
    shared = {"data": str(digits.digits), "model": f"local-dir:{clip}"}
    zeroshot = out / "runs" / "zeroshot"
    if not (zeroshot / "results.json").exists():
        with _log(zeroshot / "log.txt"):
            run_eval(EvalConfig(method="zeroshot", classes="base_new", workers=0, out=str(zeroshot), **shared))
    for seed in range(1, config.seeds + 1):
        for name, settings in methods().items():
            folder = out / "runs" / f"{name}-seed{seed}"
            print(f"{name}, seed {seed}: {folder}", flush=True)
            run = TrainConfig(
                **shared,
                classes="base",
                seed=seed,
                epochs=config.epochs,
                lr=0.05,
                augmentation="crop",
                min_crop=0.6,
                workers=0,
                grad_norm_every=20,
                out=str(folder),
                resume=True,
                **settings,
            )
            with _log(folder.with_suffix(".log")):
                train(run)
    found = report([out / "runs"], out / "report")
    print(f"\n{found.text}\n")
    plots = ", ".join(str(file) for file in found.files if file.suffix == ".png")
    print(f"results: {out / 'report' / 'report.csv'}; plots: {plots}")
    print(f"{time.perf_counter() - began:.0f} s")
    return out / "report"


def methods() -> dict[str, dict[str, object]]:
    """The trained methods of the demo: what differs between their configurations."""
    return {
        "single": {
            "adapter": RMAdapterConfig(layers="last:3", scale=0.1, reconstruct=False),
            "loss": LossConfig(0, 0, 0, 0),
        },
        "rmadapter": {
            "adapter": RMAdapterConfig(layers="last:3", scale=0.1),
            "loss": LossConfig(1, 1, 10, 25),
        },
    }


@contextlib.contextmanager
def _log(path: Path):
    """What a step prints goes to a file, so that the terminal shows the demo's own lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status is 2 for input that has to be mended."""
    try:
        run_demo(parse_arguments(DemoConfig, sys.argv[1:] if argv is None else argv, prog="rmadapter.testbed.demo"))
    except InputError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
