"""Whether the data pipeline keeps up: images a second that it delivers alone, against what a step consumes.

    python -m bench.loader
    python -m bench.loader --step bench/results/step.json --classes 100

The images are made for it: JPEG files of the size and compression of ImageNet's, smooth shapes with noise. The loader
is that of ``rmadapter train`` with its random crop and flip, once decoding every file, once with ``--image-cache``.
The fastest epoch but the first counts; in both it finds the files in the system's memory. What the fastest step
consumes is read from the samples of ``bench.step``, if there are any.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

from bench.step_report import Times, batch_of
from rmadapter.config.arguments import parse_arguments
from rmadapter.data import DecodedImages, Item, Preprocessing, Read, TrainImages, read_image, train_transform
from rmadapter.errors import InputError, check_range
from rmadapter.files import read_json
from rmadapter.reports.document import Document
from rmadapter.reports.tables import Table
from rmadapter.step.batches import TrainBatches

MARGIN = 1.5
CLIP = Preprocessing(224, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


@dataclass
class Options:
    """Images a second of the loader alone, and of the step where it was measured.

    Args:
        images: how many are made
        width: of each in pixels
        height: of each in pixels
        quality: of the JPEG files
        batch: images a batch
        workers: processes that decode
        epochs: passes, of which the fastest but the first counts
        step: samples of bench.step to compare with
        classes: number of classes of the step to compare with
    """

    images: int = 256
    width: int = 500
    height: int = 375
    quality: int = 90
    batch: int = 16
    workers: int = 2
    epochs: int = 4
    step: str = "bench/results/step.json"
    classes: int = 100

    def __post_init__(self) -> None:
        for name in ("images", "width", "height", "batch", "classes"):
            check_range(name, getattr(self, name), 1)
        check_range("quality", self.quality, 1, 95)
        check_range("workers", self.workers, 0)
        check_range("epochs", self.epochs, 2)


def make_images(folder: Path, options: Options) -> list[Item]:
    """JPEG files of smooth shapes with a little noise, which compress about as photographs do."""
    random = np.random.default_rng(0)
    items = []
    for number in range(options.images):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((options.width, options.height), Image.Resampling.BICUBIC), np.float32)
        pixels = np.clip(smooth + random.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        path = f"{number:04}.jpg"
        Image.fromarray(pixels).save(folder / path, quality=options.quality)
        items.append(Item(path, 0, "image"))
    return items


@dataclass(frozen=True)
class Decode:
    """Reads images by path below ``folder``; no local function, since workers that are spawned get it pickled."""

    folder: Path

    def __call__(self, path: str) -> Image.Image:
        """The image of ``path``."""
        return read_image(self.folder / path)


def images_per_second(read: Read, items: list[Item], options: Options) -> float:
    """Of the fastest epoch but the first."""
    images = TrainImages(read, items, train_transform(CLIP), seed=0)
    batches = TrainBatches(images, options.batch, 0, options.workers, torch.device("cpu"))
    rates = []
    for epoch in range(options.epochs):
        began = time.perf_counter()
        seen = sum(batch.count for batch in batches.epoch(epoch))
        rates.append(seen / (time.perf_counter() - began))
    return max(rates[1:])


def consumed(path: Path, classes: int) -> tuple[float, str] | None:
    """Images a second of the fastest step at ``classes`` classes that reads images, and its precision; None: none."""
    if not path.exists():
        return None
    kept = read_json(path, "samples")
    times = Times(kept["cases"])
    found = [
        (batch_of(kept, case) / time.seconds, precision)
        for (contender, precision, count), case in times.cases.items()
        if contender == "all" and count == classes and (time := times.measured(contender, precision, count)) is not None
    ]
    return max(found, default=None)


def run(options: Options) -> str:
    """The table."""
    step = consumed(Path(options.step), options.classes)
    lead = (
        f"{options.images} JPEG files of {options.width} x {options.height}, {options.workers} workers, batches of "
        f"{options.batch}"
    )
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        folder.mkdir()
        items = make_images(folder, options)
        decode = Decode(folder)
        cached = DecodedImages(decode, folder, Path(scratch) / "cache", 2**40)
        for item in items:
            cached(item.path)
        for name, read in (("decodes", decode), ("--image-cache", cached)):
            rate = images_per_second(read, items, options)
            against = f"{rate / step[0]:.1f} ({MARGIN} asked for)" if step else ""
            rows.append((name, f"{rate:.0f}", against))
    if step:
        note = f"the step at {options.classes} classes in {step[1]} consumes {step[0]:.1f} images/s"
    else:
        note = f"no samples of a step with {options.classes} classes in {options.step}: python -m bench.step first"
    table = Table("", ("loader", "images/s", "times the step's"), rows, note=note)
    return Document("", lead, (table,)).markdown()


def main(argv: list[str] | None = None) -> int:
    """The command line; 2 for input that has to be mended."""
    try:
        print(run(parse_arguments(Options, sys.argv[1:] if argv is None else argv, prog="bench.loader")))
    except InputError as error:
        print(f"bench.loader: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
