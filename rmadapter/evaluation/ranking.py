"""From image files to records: decoded by several processes, classified batch by batch, the unreadable ones named."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from rmadapter.clip.classifier import CLIPClassifier
from rmadapter.data import EvalImages, Item, Preprocessing, collate_readable, eval_transform, read_image
from rmadapter.evaluation import embeddings_file
from rmadapter.evaluation.calibration import Calibration
from rmadapter.evaluation.metrics import largest
from rmadapter.runtime import usable_processors
from rmadapter.step.batches import lost_workers_said

# Where standard error is no terminal, progress is a line in a file, and short runs have none.
SECONDS_BETWEEN_LINES = 30


@dataclass(frozen=True)
class Ranker:
    """Ranks classes for batches of images.

    Attributes:
        model: what classifies, in eval mode.
        text: its classes' features [classes, embed], computed once.
        names: of the classes.
        top: classes an image.
        threshold: probability below which the first class is no answer; None: it always is one.
        answered_by: what records call who answers, or None.
        embeddings: whether records have the image's normalised features too.
        calibration: gives probabilities its temperature, and makes the sets; None: the model's own.
        coverage: of the sets that records have too, with a calibration; None: they have none.
    """

    model: CLIPClassifier
    text: Tensor
    names: Sequence[str]
    top: int
    threshold: float | None = None
    answered_by: str | None = None
    embeddings: bool = False
    calibration: Calibration | None = None
    coverage: float | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[dict[str, Any]]:
        """A record (``prediction_formats``) of each of ``images`` [n, 3, size, size], without its name.

        Raises:
            InputError: features or logits that are not finite.
        """
        features = self.model.image_features(images.to(self.text.device, non_blocking=True))
        logits = self.model.classify_features(features, self.text)
        probabilities = logits.softmax(-1)
        sets = None
        if self.calibration is not None:
            if self.coverage is not None:
                sets = self.calibration.sets(probabilities, self.coverage).tolist()
            probabilities = self.calibration.calibrated(probabilities)
        order = largest(logits, self.top)
        values = probabilities.gather(-1, order)
        records = [self._record(*ranked) for ranked in zip(values.tolist(), order.tolist(), strict=True)]
        for record, members in zip(records, sets or (), strict=sets is not None):
            record["set"] = [name for name, inside in zip(self.names, members, strict=True) if inside]
        if self.embeddings:
            normalised = F.normalize(features.float(), dim=-1).cpu()
            for record, embedding in zip(records, normalised, strict=True):
                record[embeddings_file.KEY] = embeddings_file.as_text(embedding)
        return records

    def _record(self, values: list[float], indices: list[int]) -> dict[str, Any]:
        taken = self.threshold is None or values[0] >= self.threshold
        who = {} if self.answered_by is None else {"answered_by": self.answered_by}
        ranked = [
            {"class": self.names[index], "index": index, "probability": value}
            for index, value in zip(indices, values, strict=True)
        ]
        return {"answer": self.names[indices[0]] if taken else None, **who, "predictions": ranked}


def read_file(path: str) -> Image:
    """``read_image``, of a path that is a text; no local function, since workers that are spawned get it pickled."""
    return read_image(Path(path))


def decoding_workers(asked: int | None, images: int, batch_size: int) -> int:
    """Processes that decode: ``asked``, by default one a processor; none for a single batch, which is done sooner."""
    if asked is not None:
        return asked
    batches = math.ceil(images / batch_size)
    return min(usable_processors(), batches) if batches > 1 else 0


def ranked(
    ranker: Ranker, paths: Sequence[str], preprocessing: Preprocessing, *, batch_size: int, workers: int | None = None
) -> Iterator[list[dict[str, Any]]]:
    """The records of ``paths``, in their order, a batch at a time; of those that cannot be read with ``error``.

    Raises:
        InputError: features or logits that are not finite.
        WorkerLostError: a process that decodes images has ended.
    """
    items = [Item(path, number, "") for number, path in enumerate(paths)]  # the label says which ones could be read
    loader = DataLoader(
        EvalImages(read_file, items, eval_transform(preprocessing)),
        batch_size,
        num_workers=decoding_workers(workers, len(paths), batch_size),
        pin_memory=ranker.text.device.type == "cuda",
        collate_fn=collate_readable,
        generator=torch.Generator(),
    )
    first = 0
    with lost_workers_said("the same command goes on where it writes to files"):
        for images, labels, unreadable in loader:
            readable = labels.tolist()
            found = dict(zip(readable, ranker(images) if readable else (), strict=True))
            after = first + len(readable) + len(unreadable)
            errors = iter(unreadable)
            yield [
                {"image": paths[number], **(found[number] if number in found else {"error": next(errors)})}
                for number in range(first, after)
            ]
            first = after


def progress(total: int, done: int) -> tqdm:
    """A bar with the time left on standard error, beginning at ``done`` images of ``total``."""
    seconds = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    delay = 0 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    return tqdm(total=total, initial=done, desc="predict", unit="image", leave=False, mininterval=seconds, delay=delay)
