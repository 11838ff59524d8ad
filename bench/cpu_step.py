"""What the adapters cost in a whole training step on the CPU: ``python -m bench.cpu_step > bench/results/cpu_step.md``

ViT-B/16 with random weights, adapters in the last 8 blocks of both towers, 16 images, 50 classes, fp32 or
``--precision bf16`` (of the frozen weights and the activations), cross-entropy and both reconstructions. The step
without adapters runs the same blocks forward and backward: in every variant the input of the first adapted block
requires a gradient. The variants take turns, so that a slow moment hits all.
"""

from __future__ import annotations

import argparse
import statistics
import time

import open_clip
import torch

from bench.results import processor
from rmadapter import RMAdapterCLIP, RMAdapterConfig
from rmadapter.clip.towers import find_towers
from rmadapter.config import LossConfig
from rmadapter.reports.tables import Table
from rmadapter.runtime import DTYPES
from rmadapter_kernels import available_backends

VARIANTS = ("without", "cpu", "eager")


def make_model(classes: int, precision: str) -> RMAdapterCLIP:
    """The classifier; the first adapted block of each tower asks for a gradient of its input."""
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16", pretrained=None).to(DTYPES[precision])
    model = RMAdapterCLIP(
        clip,
        open_clip.get_tokenizer("ViT-B-16"),
        [f"kind {number}" for number in range(classes)],
        config=RMAdapterConfig(layers="last:8"),
        loss=LossConfig(lambda1=1.0, lambda2=1.0, lambda3=0.0, lambda4=0.0),
    ).train()
    for tower in find_towers(clip).values():
        tower.blocks[-8].register_forward_pre_hook(lambda block, args: (args[0].detach().requires_grad_(), *args[1:]))
    return model


def timed_step(model: RMAdapterCLIP, variant: str, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Seconds of forward and backward."""
    model.adapted.set_enabled(variant != "without")
    if variant != "without":
        model.adapted.set_backend(variant)
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    model(images, labels).losses["total"].backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    if not available_backends()["cpu"].available:
        raise SystemExit(available_backends()["cpu"].reason)
    model = make_model(options.classes, options.precision)
    images = torch.randn(options.images, 3, 224, 224, dtype=DTYPES[options.precision])
    labels = torch.arange(options.images) % options.classes
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for number in range(options.rounds + 1):
        for variant in VARIANTS:
            seconds = timed_step(model, variant, images, labels)
            if number > 0:
                times[variant].append(seconds)
    base = statistics.median(times["without"])
    rows = [("without adapters", f"{base:.3f}", "")]
    for variant in VARIANTS[1:]:
        ratios = [one / other for one, other in zip(times[variant], times["without"], strict=True)]
        cost = statistics.median(ratios) - 1
        rows.append((variant, f"{statistics.median(times[variant]):.3f}", f"{cost:+.1%}"))
    headings = ("step", "median, s", "over the step without adapters (median of the rounds' ratios)")
    made = f"{options.images} images, {options.classes} classes, {options.precision}"
    print(f"{made}, {options.rounds} rounds; {processor()}\n")
    print(Table("", headings, rows, aligned=False).markdown())


if __name__ == "__main__":
    main()
