"""Train the same run on every backend of the operator, or in several precisions, and compare how it goes and ends.

    python -m bench.equivalence --out folder             # the test bed, every backend that the device takes
    python -m bench.equivalence --out folder --variants eager/bf16,triton/bf16,triton/fp16,triton/fp32 --epochs 46

A variant is BACKEND/PRECISION. It is compared with eager's in the same precision where that is among them, else with
the first. A run's seed draws its sample, order, augmentation and weights, so the runs of one seed differ by nothing but
rounding. Printed for each variant and seed: the largest difference of the smoothed loss, the means over 50 steps, and
those of its last value and of the accuracies, beside their spread over the seeds of what it is compared with. Ends with
1 where one is larger than that spread. The same command goes on with what is in ``--out``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rmadapter import TrainConfig
from rmadapter.clip.names import MODEL
from rmadapter.runtime import resolve_device
from rmadapter.testbed.runs import train_config
from rmadapter.training.adapter_run import train
from rmadapter_kernels import available_backends

REFERENCE = "eager"
WINDOW = 50  # steps that the smoothed loss is a mean of, or as many as there are


@dataclass(frozen=True)
class Run:
    """Losses of a run's steps, as it has written them, and its accuracies in percent by part, such as base and new."""

    losses: list[float]
    accuracy: dict[str, float]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The one in ``folder``."""
        lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return cls([line["loss"] for line in lines if line["kind"] == "step"], results.get("accuracy", {}))

    @property
    def smoothed(self) -> list[float]:
        """The mean of each ``WINDOW`` steps that follow one another."""
        width = min(WINDOW, len(self.losses))
        return [sum(self.losses[end - width : end]) / width for end in range(width, len(self.losses) + 1)]

    @property
    def ends(self) -> dict[str, float]:
        """What a run comes to: its last smoothed loss, and its accuracies."""
        return {"last": self.smoothed[-1], **self.accuracy}


@dataclass(frozen=True)
class Difference:
    """A run against that of the same seed which it is compared with; curves are as long as the shorter one.

    Attributes:
        largest: of the smoothed loss.
        ends: of the last smoothed loss and of each accuracy: the difference, and the spread over seeds.
    """

    variant: str
    seed: int
    steps: int
    largest: float
    ends: dict[str, tuple[float, float]]

    @property
    def within(self) -> bool:
        """Whether it ends where another seed might have."""
        return all(found <= spread for found, spread in self.ends.values())

    def __str__(self) -> str:
        ends = ", ".join(
            f"{name} {found:.2g} {'within' if found <= spread else 'OUTSIDE'} the seeds' {spread:.2g}"
            for name, (found, spread) in self.ends.items()
        )
        return f"{self.variant} seed {self.seed}: largest difference {self.largest:.1e} over {self.steps} steps, {ends}"


def compared_with(variant: str, variants: Sequence[str]) -> str:
    """The variant that ``variant`` is judged by."""
    own = f"{REFERENCE}/{variant.partition('/')[2]}"
    return own if own in variants else variants[0]


def compare(runs: dict[tuple[str, int], Run]) -> list[Difference]:
    """Differences of all runs, by (variant, seed), but those that others are compared with."""
    variants = list(dict.fromkeys(variant for variant, _ in runs))
    found = []
    for (variant, seed), run in runs.items():
        reference = compared_with(variant, variants)
        if variant == reference:
            continue
        usual = runs[reference, seed]
        seeds = [own.ends for (name, _), own in runs.items() if name == reference]
        ends = {
            name: (abs(value - usual.ends[name]), max(own[name] for own in seeds) - min(own[name] for own in seeds))
            for name, value in run.ends.items()
        }
        pairs = zip(run.smoothed, usual.smoothed, strict=False)
        steps = min(len(run.losses), len(usual.losses))
        found.append(Difference(variant, seed, steps, max(abs(a - b) for a, b in pairs), ends))
    return found


def backends_here() -> list[str]:
    """Those that training runs on here: on a GPU where there is one, whose tensors the cpu backend does not take."""
    refused = {"cpu"} if resolve_device("auto").type == "cuda" else set()
    return [name for name, status in available_backends().items() if status.available and name not in refused]


def run(config: TrainConfig, out: Path, case: tuple[str, int]) -> Run:
    """The run of ``config`` as a variant with a seed, every step logged."""
    variant, seed = case
    backend, _, precision = variant.partition("/")
    folder = out / f"{backend}-{precision}-seed{seed}"
    changes: dict[str, Any] = {"backend": backend, "precision": precision, "seed": seed, "out": str(folder)}
    train(replace(config, **changes, log_every=1, resume=True))
    return Run.read(folder)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    here = backends_here()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--data", default="emoji_food", help="as of rmadapter train (%(default)s)")
    parser.add_argument("--style", help="as of rmadapter train")
    parser.add_argument("--model", default=MODEL, help="as of rmadapter train (%(default)s)")
    parser.add_argument("--layers", help="blocks with adapters (default: the test bed's)")
    parser.add_argument("--shots", type=int, help="images a class (default: the test bed's)")
    parser.add_argument("--epochs", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--seeds", default="1,2,3", help="(%(default)s)")
    parser.add_argument("--variants", default=",".join(f"{name}/auto" for name in here), help="(%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each a process (%(default)s)")
    given = parser.parse_args(arguments)
    variants = given.variants.split(",")
    if unknown := [name for name in variants if name.partition("/")[0] not in here or "/" not in name]:
        parser.error(f"--variants has {unknown[0]!r}; valid: BACKEND/PRECISION, of the backends {', '.join(here)}")
    changes = {"layers": given.layers, "shots": given.shots}
    config = train_config(
        given.data, given.style, 1, model=given.model, epochs=given.epochs, workers=0, grad_norm_every=0,
        checkpoint_every=0, **{name: value for name, value in changes.items() if value is not None},
    )  # fmt: skip
    cases = list(product(variants, (int(seed) for seed in given.seeds.split(","))))
    make = partial(run, config, given.out)
    if given.jobs == 1:
        made = list(map(make, cases))
    else:
        with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
            made = list(pool.map(make, cases))
    found = compare(dict(zip(cases, made, strict=True)))
    print(*found, sep="\n")
    return int(not all(difference.within for difference in found))


if __name__ == "__main__":
    sys.exit(main())
