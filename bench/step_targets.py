"""What is asked of the training steps that ``bench.step`` times."""

from __future__ import annotations

from typing import NamedTuple

REFERENCE = "ViT-B-16"
# Of RMAdapter on it. Classes -> times faster than plain: all in fp32, with views in fp32, all in the default
# precision.
TARGETS = {100: (2.2, 3.5, 6.0), 397: (4.0, 6.0, 12.0), 1000: (6.0, 8.0, 20.0)}
# Of RMAdapter on other models, at batch 16 and 100 classes in fp32: all.
MODELS_CLASSES = 100
MODELS = {"ViT-L-14": 3.0, "ViT-H-14": 3.0, "EVA02-L-14": 3.0, "ViT-B-16-SigLIP2": 1.8}
SLOPE = 10.0
RECONSTRUCTION_TIME, RECONSTRUCTION_MEMORY = 0.02, 0.01
# Of RMAdapter on it on a GPU, recorded, at batch 32 and these classes: times faster than the plain step, and at most
# so many times the backbone's own step, with reconstruction and without.
GPU_BATCH, GPU_CLASSES, GPU_TIMES, GPU_BACKBONE, GPU_ADAPTERS = 32, 100, 4.0, 1.2, 1.08
# Of every method: of the ratio of operations that --explain predicts.
SHARE_OF_EXPECTED = 0.85


class Asked(NamedTuple):
    """What one contender of some methods has to reach in fp32 at a batch and a number of classes.

    Attributes:
        times: faster than the plain step; None for no such target.
        gigabytes: its peak of memory, in 1e9 bytes; None for no such target.
    """

    methods: tuple[str, ...]
    batch: int
    classes: int
    contender: str
    times: float | None = None
    gigabytes: float | None = None


_WORDS, _DEEP = ("coop", "kgcoop"), ("maple", "promptsrc", "coprompt")
ASKED = (
    Asked(_WORDS, 32, 100, "all", times=6),
    Asked(_WORDS, 32, 100, "all, views", times=10),
    Asked(_WORDS, 32, 1000, "all", times=9, gigabytes=4),
    Asked(("cocoop",), 16, 100, "all", times=8),
    Asked(("cocoop",), 4, 1000, "all", gigabytes=6),
    Asked(_DEEP, 4, 100, "all", times=3),
    Asked(("clip-adapter", "tip-adapter-f"), 32, 100, "all, views", times=100),
    Asked(("clip-lora",), 32, 100, "all", times=2.5),
)
