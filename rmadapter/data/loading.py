"""Images for a DataLoader: an augmentation that depends on (seed, epoch, index) alone, and batches to match."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from rmadapter.data.items import ImageData, Item
from rmadapter.data.sampling import few_shot_sample
from rmadapter.data.transforms import Transform
from rmadapter.errors import InputError

Read = Callable[[str], Image.Image]  # an item's path -> its image; ``ImageData.read``
# What tells the seeds of what is drawn for one (epoch, index) apart, behind those two; the first view has none.
SECOND_VIEW, SENTENCE, DROPOUT = 1, 2, 3


def _seed(*numbers: int) -> int:
    """A 64-bit seed from several numbers, well mixed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class TrainImages(Dataset):
    """Training images by ``(epoch, index)`` -> (image [3, size, size], label); with ``two_views`` [2, 3, size, size].

    The random choices of ``transform`` come from torch's generator, which is seeded for each view and put back
    afterwards, so that workers, order and the point of resumption change nothing. The first view is the same with a
    second one and without.
    """

    def __init__(self, read: Read, items: Sequence[Item], transform: Transform, seed: int, two_views: bool = False):
        self.read, self.items, self.transform, self.seed = read, list(items), transform, seed
        self.two_views = two_views

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        item = self.items[index]
        image = self.read(item.path)
        first = self._view(image, self.seed, epoch, index)
        if not self.two_views:
            return first, item.label
        return torch.stack([first, self._view(image, self.seed, epoch, index, SECOND_VIEW)]), item.label

    def _view(self, image: Image.Image, *seeds: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which takes 1.2 ms to note a stack trace for CUDA's generators.
            torch.default_generator.manual_seed(_seed(*seeds))
            return self.transform(image)


def drawn_number(seed: int, epoch: int, step: int, count: int) -> int:
    """Which of ``count`` sentences a class a step compares with, the same for all classes; at random, by its number."""
    return int(np.random.default_rng((seed, epoch, step, SENTENCE)).integers(count))


def seed_dropout(device: torch.device, seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed the generator of ``device`` that dropout draws from, for a step of a process, by its number."""
    on_cuda = device.type == "cuda"
    generator = torch.cuda.default_generators[device.index] if on_cuda else torch.default_generator
    generator.manual_seed(_seed(seed, epoch, step, DROPOUT, rank))


def steps_an_epoch(images: int, batch_size: int, drop_last: bool) -> int:
    """Batches of an epoch; ``drop_last`` leaves out a last one that is not full, unless it is the only one."""
    if drop_last and images >= batch_size:
        return images // batch_size
    return math.ceil(images / batch_size)


class EpochBatches:
    """Batches of ``(epoch, index)`` for one epoch, in an order that depends on (seed, epoch) alone.

    ``start`` leaves out the first batches, for a run that goes on inside an epoch. The last batch may be short; with
    ``drop_last`` see ``steps_an_epoch``.
    """

    def __init__(self, size: int, batch_size: int, seed: int, epoch: int, start: int = 0, drop_last: bool = False):
        self.size, self.batch_size, self.seed, self.epoch, self.start = size, batch_size, seed, epoch, start
        self.steps = steps_an_epoch(size, batch_size, drop_last)

    def __len__(self) -> int:
        return max(0, self.steps - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size).tolist()
        for step in range(self.start, self.steps):
            first = step * self.batch_size
            yield [(self.epoch, index) for index in order[first : first + self.batch_size]]


class EvalImages(Dataset):
    """Images by index -> (image [3, size, size], label), or the sentence on why an image cannot be read.

    A value and not an exception, since a DataLoader's worker would wrap the exception in its traceback.
    """

    def __init__(self, read: Read, items: Sequence[Item], transform: Transform):
        self.read, self.items, self.transform = read, list(items), transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | str:
        item = self.items[index]
        try:
            image = self.read(item.path)
        except InputError as error:
            return str(error)
        return self.transform(image), item.label


def collate_readable(batch: list[tuple[Tensor, int] | str]) -> tuple[Tensor, Tensor, list[str]]:
    """Images [n, 3, size, size], labels [n], and the sentences on those that cannot be read; n may be 0."""
    unreadable = [sample for sample in batch if isinstance(sample, str)]
    readable = [sample for sample in batch if not isinstance(sample, str)]
    images, labels = default_collate(readable) if readable else (torch.empty(0), torch.empty(0, dtype=torch.long))
    return images, labels, unreadable


def check_images(
    read: Read, items: Sequence[Item], skip_bad: bool = False, workers: int = 8
) -> tuple[list[Item], list[tuple[str, str]]]:
    """Decode every image, in threads: the good items and, with ``skip_bad``, the others as (path, reason).

    Raises:
        InputError: without ``skip_bad``, where an image cannot be read; the first ten are named.
    """

    def reason(item: Item) -> str | None:
        try:
            read(item.path)
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(workers) as pool:
        reasons = list(pool.map(reason, items))
    bad = [(item.path, why) for item, why in zip(items, reasons, strict=True) if why is not None]
    if bad and not skip_bad:
        names = ", ".join(path for path, _ in bad[:10])
        raise InputError(
            f"{len(bad)} of {len(items)} images cannot be read: {names}; --skip-bad-images leaves such images out"
        )
    return [item for item, why in zip(items, reasons, strict=True) if why is None], bad


def readable_sample(
    read: Read, data: ImageData, shots: int, seed: int, skip_bad: bool = False
) -> tuple[list[Item], list[Item], set[str]]:
    """The few-shot sample of images that can be read: training and validation items, and the paths that were left out.

    With ``skip_bad`` it is drawn again without the unreadable ones, so that every class gets its shots where it has
    them. Validation images are not read.

    Raises:
        InputError: as ``few_shot_sample`` and, without ``skip_bad``, ``check_images``.
    """
    left_out: set[str] = set()
    while True:
        candidates = [item for item in data.train if item.path not in left_out]
        train, val = few_shot_sample(candidates, data.val, shots, seed)
        _, bad = check_images(read, train, skip_bad)
        if not bad:
            return train, val, left_out
        left_out |= {path for path, _ in bad}
