"""Images a second of ``rmadapter predict`` and ``serve`` against the loop that one writes with open_clip.

    python -m bench.predict
    python -m bench.predict --images 2000 --precision bf16

The same JPEG files, made for it, the same number of processes that decode, the same model. What is timed begins with
the first file and ends with the last answer; the model and the classes' features are there before. ``predict`` writes
a CSV file on top, once without an adapter and once with a freshly drawn one, which changes no answer. The loop and both
take turns, and what is compared is of the same round. ``serve`` is another process on the same cores, asked for each of
these files by clients that each wait for an answer before they ask again; with an adapter it answers zero-shot too.
Throughput is that of the most clients.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.loader import Options as ImageOptions
from bench.loader import make_images
from bench.served import SECONDS_TO_ANSWER, Asking, asking, serving
from rmadapter import RMAdapterConfig, inject
from rmadapter.clip.backbone import load_backbone
from rmadapter.config.arguments import run_module
from rmadapter.config.paths import ModelText
from rmadapter.data.transforms import Transform
from rmadapter.errors import InputError, check_range
from rmadapter.evaluation.predict import PredictConfig, run_predict
from rmadapter.reports.document import Document
from rmadapter.reports.tables import Table
from rmadapter.runtime import DTYPES, resolve_device, resolve_precision, usable_processors

TARGET = 1.5
LOOP = "open_clip and a DataLoader"
TEMPLATE = "a photo of a {}."


@dataclass
class Options:
    """Images a second of predict, of serve and of a plain open_clip loop, and how long serve's answers take.

    Args:
        images: how many are made
        width: of each in pixels
        height: of each in pixels
        quality: of the JPEG files
        classes: how many there are
        model: open_clip model name, with random weights, or local-dir:FOLDER
        layers: of the adapters
        precision: auto, bf16, fp16 or fp32, of all that is compared
        device: auto, cpu, cuda or cuda:N
        batch_size: images a step
        workers: processes that decode; default: one a processor
        rounds: how often the loop and predict run, in turns; medians are shown
        clients: how many ask serve at a time, several numbers between commas; none leaves serve out
    """

    images: int = 512
    width: int = 500
    height: int = 375
    quality: int = 90
    classes: int = 100
    model: ModelText = "ViT-B-16"
    layers: str = "last:8"
    precision: str = "auto"
    device: str = "auto"
    batch_size: int = 32
    workers: int | None = None
    rounds: int = 3
    clients: str = "1,8,32"

    def __post_init__(self) -> None:
        if not all(number.strip().isdecimal() and int(number) > 0 for number in self._clients):
            raise InputError(f"clients is {self.clients!r}; valid: none, or whole numbers from 1 on between commas")
        for name in ("images", "width", "height", "batch_size", "rounds"):
            check_range(name, getattr(self, name), 1)
        check_range("classes", self.classes, 2)

    @property
    def pretrained(self) -> str | None:
        """What predict is told of the weights."""
        return None if ":" in self.model else "none"

    @property
    def _clients(self) -> list[str]:
        return [] if self.clients == "none" else self.clients.split(",")

    @property
    def counts(self) -> list[int]:
        """How many clients ask serve at a time."""
        return [int(number) for number in self._clients]

    @property
    def names(self) -> list[str]:
        """Of the classes."""
        return [f"kind {number}" for number in range(self.classes)]


class Files(Dataset):
    """Images as a plain loop reads them."""

    def __init__(self, paths: list[str], transform: Transform):
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


@torch.no_grad()
def plain(paths: list[str], options: Options, device: torch.device, precision: str, workers: int) -> float:
    """Images a second of the loop: encode, normalise, multiply, the first class of each."""
    # Random weights need no download, and are as fast as others.
    clip, _, transform = open_clip.create_model_and_transforms(options.model, precision=precision, device=device)
    clip.eval()
    text = open_clip.get_tokenizer(options.model)([TEMPLATE.format(name) for name in options.names]).to(device)
    classes = clip.encode_text(text, normalize=True)
    loader = DataLoader(
        Files(paths, transform), options.batch_size, num_workers=workers, pin_memory=device.type == "cuda"
    )
    began, answers = time.perf_counter(), []
    for images in loader:
        features = clip.encode_image(images.to(device, DTYPES[precision], non_blocking=True), normalize=True)
        answers += (clip.logit_scale.exp() * features @ classes.T).softmax(-1).argmax(-1).tolist()
    return len(answers) / (time.perf_counter() - began)


def predicted(
    folder: Path, name: str, options: Options, device: torch.device, precision: str, workers: int, adapter: str | None
) -> float:
    """Images a second that predict reports for the images in ``folder``; its answers go to a file there."""
    config = PredictConfig(
        images=[str(folder / "images")],
        adapter=adapter,
        classes=",".join(options.names),
        template=[TEMPLATE],
        csv=str(folder / f"{name}.csv"),
        model=options.model,
        pretrained=options.pretrained,
        precision=precision,
        device=str(device),
        batch_size=options.batch_size,
        workers=workers,
    )
    with open(os.devnull, "w", encoding="utf-8") as nothing, contextlib.redirect_stdout(nothing):
        return run_predict(config).rate


def served(
    paths: list[str], options: Options, device: torch.device, precision: str, workers: int, adapter: str | None
) -> list[Asking]:
    """What each number of clients meets; the features of the classes are there before."""
    words = ["--classes", ",".join(options.names), "--template", TEMPLATE, "--model", options.model]
    words += [] if options.pretrained is None else ["--pretrained", options.pretrained]
    words += [] if adapter is None else ["--adapter", adapter]
    words += ["--precision", precision, "--device", str(device), "--batch-size", str(options.batch_size)]
    counts = options.counts
    words += ["--workers", str(max(1, workers)), "--queue", str(max(64, *counts)), "--timeout", str(SECONDS_TO_ANSWER)]
    with serving(words) as address:
        asking(address, paths[: 2 * options.batch_size], max(counts))
        return [asking(address, paths, count) for count in counts]


def drawn_adapter(folder: Path, options: Options) -> str:
    """A fresh adapter's folder."""
    backbone = load_backbone(options.model, options.pretrained)
    adapted = inject(backbone.clip, RMAdapterConfig(layers=options.layers), source=backbone.source)
    adapted.save_adapter(folder / "adapter", class_names=options.names, template=TEMPLATE)
    return str(folder / "adapter")


def in_turn(calls: Mapping[str, Callable[[], float]], number: int) -> dict[str, float]:
    """What each call gives, in an order that begins with another one each round."""
    names = list(calls)
    first = number % len(names)
    return {name: calls[name]() for name in names[first:] + names[:first]}


def rows_of(rounds: Sequence[Mapping[str, float]]) -> list[tuple[str, str, str, str]]:
    """Images a second of each and how many times the loop's of the same round, medians, with their least and most."""
    rows = []
    for name in sorted(rounds[0], key=lambda name: name != LOOP):
        times = [found[name] / found[LOOP] for found in rounds]
        spread = "" if name == LOOP else f"{min(times):.2f} to {max(times):.2f}"
        rate = statistics.median(found[name] for found in rounds)
        rows.append((name, f"{rate:.1f}", f"{statistics.median(times):.2f}", spread))
    return rows


def run(options: Options) -> None:
    """Print the table."""
    device = resolve_device(options.device)
    precision = resolve_precision(options.precision, device)
    workers = usable_processors() if options.workers is None else options.workers
    made = ImageOptions(images=options.images, width=options.width, height=options.height, quality=options.quality)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        paths = [str(folder / "images" / item.path) for item in make_images(folder / "images", made)]
        common = (options, device, precision, workers)
        adapter = drawn_adapter(folder, options)

        def calls(number: int) -> dict[str, Callable[[], float]]:
            # Each into a file of its own: predict goes on with one that is there.
            return {
                LOOP: lambda: plain(paths, *common),
                "predict, without an adapter": lambda: predicted(folder, f"zeroshot-{number}", *common, None),
                "predict, with an adapter": lambda: predicted(folder, f"adapter-{number}", *common, adapter),
            }

        rounds = [in_turn(calls(number), number) for number in range(options.rounds)]
        contenders = {"serve, without an adapter": None, "serve, with an adapter": adapter} if options.counts else {}
        asked = {name: served(paths, *common, folder_of) for name, folder_of in contenders.items()}
    rows = rows_of(rounds)
    loop = statistics.median(found[LOOP] for found in rounds)
    busiest = {name: max(several, key=lambda one: one.clients).rate for name, several in asked.items()}
    rows += [(name, f"{rate:.1f}", f"{rate / loop:.2f}", "") for name, rate in busiest.items()]
    lead = (
        f"{options.model}, {precision} on {device}, {options.images} JPEG files of {options.width} x {options.height}, "
        f"{options.classes} classes, batches of {options.batch_size}, {workers} processes that decode, "
        f"{torch.get_num_threads()} threads; medians of {options.rounds} rounds, the loop and predict in turns"
    )
    note = f"asked for on a CPU in bf16: {TARGET} times the loop"
    latencies = [
        (name, str(one.clients), f"{one.rate:.1f}", f"{one.milliseconds(50):.0f}", f"{one.milliseconds(99):.0f}")
        for name, several in asked.items()
        for one in several
    ]
    tables = [Table("", ("", "images/s", "times the loop's", "least and most"), rows, note=note)]
    tables += [Table("", ("", "clients", "images/s", "p50 ms", "p99 ms"), latencies)] if latencies else []
    print(Document("", lead, tables).markdown())


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit status."""
    return run_module(Options, run, argv, prog="bench.predict")


if __name__ == "__main__":
    sys.exit(main())
