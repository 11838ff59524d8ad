"""Train the same run on every backend of the operator and compare the loss curves.

    python -m bench.equivalence --out folder --data emoji_animals --model local-dir:CLIP [--backends eager,cpu]
    python -m bench.equivalence --out folder --data ... --backends eager,triton --epochs 50     # on a GPU

A run's seed draws its sample, order, augmentation and weights, so the runs of one seed differ by nothing but rounding.
Printed for each backend and seed: the largest difference of the loss curve from eager's, and that of the last losses,
beside the spread of eager's last losses over the seeds. Ends with 1 where a last loss differs by more than that spread.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rmadapter import RMAdapterConfig, TrainConfig
from rmadapter.training.adapter_run import train
from rmadapter_kernels import available_backends

REFERENCE = "eager"


@dataclass(frozen=True)
class Difference:
    """A backend's run against eager's of the same seed; the curves are as long as the shorter one."""

    backend: str
    seed: int
    steps: int
    largest: float
    last: float
    spread: float

    @property
    def within(self) -> bool:
        """Whether it ends where another seed might have."""
        return self.last <= self.spread

    def __str__(self) -> str:
        verdict = "within" if self.within else "OUTSIDE"
        return (
            f"{self.backend} seed {self.seed}: largest difference {self.largest:.1e} over {self.steps} steps, "
            f"last {self.last:.1e}, {verdict} the seeds' {self.spread:.1e}"
        )


def loss_curve(folder: Path) -> list[float]:
    """Losses of a run's steps, as it has written them."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if line["kind"] == "step"]


def compare(curves: dict[tuple[str, int], Sequence[float]]) -> list[Difference]:
    """Differences of every backend's curves, by (backend, seed), from eager's."""
    ends = [curve[-1] for (backend, _), curve in curves.items() if backend == REFERENCE]
    spread = max(ends) - min(ends)
    found = []
    for (backend, seed), curve in curves.items():
        if backend == REFERENCE:
            continue
        usual = curves[REFERENCE, seed]
        pairs = list(zip(curve, usual, strict=False))
        last = abs(pairs[-1][0] - pairs[-1][1])
        largest = max(abs(a - b) for a, b in pairs)
        found.append(Difference(backend, seed, len(pairs), largest, last, spread))
    return found


def run(config: TrainConfig, out: Path, backend: str, seed: int) -> list[float]:
    """The loss curve of ``config`` on one backend, every step logged."""
    folder = out / f"{backend}-seed{seed}"
    values = vars(config) | {"backend": backend, "seed": seed, "out": str(folder), "log_every": 1, "evaluate": False}
    train(TrainConfig(**values))
    return loss_curve(folder)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    here = [name for name, status in available_backends().items() if status.available]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--data", required=True, help="as of rmadapter train")
    parser.add_argument("--model", required=True, help="as of rmadapter train")
    parser.add_argument("--pretrained", help="as of rmadapter train")
    parser.add_argument("--precision", default="auto", help="as of rmadapter train (%(default)s)")
    parser.add_argument("--layers", default="last:8", help="blocks with adapters (%(default)s)")
    parser.add_argument("--shots", type=int, default=4, help="images a class (%(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--seeds", default="1,2,3", help="(%(default)s)")
    parser.add_argument("--backends", default=",".join(here), help="with eager among them (%(default)s)")
    given = parser.parse_args(arguments)
    backends = given.backends.split(",")
    if REFERENCE not in backends:
        parser.error(f"--backends is {given.backends}; valid: with {REFERENCE} among them")
    config = TrainConfig(
        data=given.data, model=given.model, pretrained=given.pretrained, precision=given.precision, shots=given.shots,
        epochs=given.epochs, batch_size=given.batch_size, workers=0, grad_norm_every=0, checkpoint_every=0,
        adapter=RMAdapterConfig(layers=given.layers),
    )  # fmt: skip
    seeds = [int(seed) for seed in given.seeds.split(",")]
    curves = {(name, seed): run(config, given.out, name, seed) for name in backends for seed in seeds}
    found = compare(curves)
    print(*found, sep="\n")
    return int(not all(difference.within for difference in found))


if __name__ == "__main__":
    sys.exit(main())
