"""Training batches: decoded and augmented, or what the frozen model has made of them before."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rmadapter.data import EpochBatches, TrainImages, steps_an_epoch
from rmadapter.errors import InputError, StoppedError
from rmadapter.step.distributed import Ranks
from rmadapter.step.train_step import Views
from rmadapter.step.view_cache import ViewCache
from rmadapter.tuners.encoder import Entry


class WorkerLostError(StoppedError):
    """A process that decodes images has ended."""


# How training goes on, in messages.
TRAINING_GOES_ON = "--resume goes on from the last saved state (in a sweep or a search, that one's own command)"


@contextlib.contextmanager
def lost_workers_said(goes_on: str = TRAINING_GOES_ON) -> Iterator[None]:
    """Inside, PyTorch's error that a loader's process has ended becomes a WorkerLostError, which says what helps."""
    try:
        yield
    except RuntimeError as error:
        # The sentence begins so wherever it is raised: where a batch is waited for, or in a handler of signals.
        if not str(error).startswith("DataLoader worker"):
            raise
        raise WorkerLostError(
            f"a process that decodes images has ended ({str(error).rstrip('. ')}), most often for want of memory; "
            f"{goes_on}, with fewer --workers, or with --workers 0, which decodes in the process itself"
        ) from error


@dataclass
class Batch:
    """One process's part of a training batch.

    Attributes:
        labels: int64 [n].
        images: [n, 3, size, size], of two views [n, 2, 3, size, size], or None where ``views`` are at hand.
        views: what the frozen model made of the images, or None.
        total: images of the whole batch; ``count`` of them are here. A process without any has one that counts 0.
        view, numbers: which view of which images, for the cache.
    """

    labels: Tensor
    images: Tensor | None
    views: Views | None
    total: int
    count: int
    view: int
    numbers: list[int]

    def to(self, device: torch.device) -> Batch:
        """The same on ``device``; copies from pinned memory do not wait."""
        views = self.views
        if views is not None:
            views = Views(
                Entry(*(t.to(device, non_blocking=True) for t in views.entry)),
                None if views.target is None else views.target.to(device, non_blocking=True),
            )
        images = None if self.images is None else self.images.to(device, non_blocking=True)
        labels = self.labels.to(device, non_blocking=True)
        return Batch(labels, images, views, self.total, self.count, self.view, self.numbers)

    def pin_memory(self) -> Batch:
        """In pinned memory; a DataLoader asks for it."""
        pin = torch.utils.data._utils.pin_memory.pin_memory
        views = None if self.views is None else Views(*pin(tuple(self.views)))
        images = None if self.images is None else self.images.pin_memory()
        return Batch(self.labels.pin_memory(), images, views, self.total, self.count, self.view, self.numbers)


class _Loading(Dataset):
    """Whole batches of ``(epoch, index)``: this process's part, from the cache if all of it is there.

    All or nothing, so that what enters the frozen model together does not depend on what an earlier run has left.
    """

    def __init__(self, images: TrainImages, cache: ViewCache | None, ranks: Ranks):
        self.images, self.cache, self.ranks = images, cache, ranks

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch | str:
        """The batch, or the sentence on why an image of it cannot be read.

        A value and not an exception, since a DataLoader's worker would wrap the exception in its traceback.
        """
        try:
            return self._batch(keys)
        except InputError as error:
            return str(error)

    def _batch(self, keys: list[tuple[int, int]]) -> Batch:
        start, stop = self.ranks.part(len(keys))
        own = keys[start:stop] or keys[:1]
        # With a cache, epoch e has view e modulo the number of views; the first epochs are as without one.
        view = keys[0][0] % self.cache.views if self.cache is not None else keys[0][0]
        numbers = [index for _, index in own]
        labels = torch.tensor([self.images.items[index].label for index in numbers])
        views = self.cache.read(view, numbers) if self.cache is not None else None
        images = None if views is not None else torch.stack([self.images[view, index][0] for index in numbers])
        return Batch(labels, images, views, len(keys), stop - start, view, numbers)


@dataclass
class TrainBatches:
    """Batches of a run.

    ``size`` is that of the whole batch, over all processes; ``drop_last`` is that of ``EpochBatches``.
    """

    images: TrainImages
    size: int
    seed: int
    workers: int
    device: torch.device
    cache: ViewCache | None = None
    ranks: Ranks = field(default_factory=Ranks)
    drop_last: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return steps_an_epoch(len(self.images), self.size, self.drop_last)

    def numbers(self, epoch: int, step: int) -> list[int]:
        """Which images the whole batch of a step has."""
        batches = EpochBatches(len(self.images), self.size, self.seed, epoch, start=step)
        return [index for _, index in next(iter(batches))]

    @cached_property
    def _loader(self) -> DataLoader:
        # A generator of its own: the loader draws its workers' seeds from it, not from torch's global one.
        return DataLoader(
            _Loading(self.images, self.cache, self.ranks),
            batch_sampler=EpochBatches(len(self.images), self.size, self.seed, 0, drop_last=self.drop_last),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,  # an epoch may be ten steps
            pin_memory=self.device.type == "cuda",
            collate_fn=_as_it_is,
            generator=torch.Generator(),
        )

    def passes(self, views: int, *, kept: bool) -> Iterator[Batch]:
        """Batches of every image in order, in the first of its views, then in the second and so on, on the device.

        With ``kept`` what is in the cache comes as ``Batch.views``. InputError where an image cannot be read.
        """
        starts = range(0, len(self.images), self.size)
        parts = [range(start, min(start + self.size, len(self.images))) for start in starts]
        loader = DataLoader(
            _Loading(self.images, self.cache if kept else None, self.ranks),
            batch_sampler=[[(view, index) for index in part] for view in range(views) for part in parts],
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            collate_fn=_as_it_is,
            generator=torch.Generator(),
        )
        for batch in loader:
            yield self._arrived(batch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step ``start`` on, on the device; one epoch at a time.

        Raises:
            InputError: an image that cannot be read any more.
        """
        sampler: Any = self._loader.batch_sampler
        sampler.epoch, sampler.start = epoch, start
        for batch in self._loader:
            yield self._arrived(batch)

    def _arrived(self, batch: Batch | str) -> Batch:
        if isinstance(batch, str):
            raise InputError(batch)
        return batch.to(self.device)


class Waited(Iterator[Batch]):
    """Batches, and the seconds that were spent waiting for them."""

    def __init__(self, batches: Iterable[Batch]):
        self._batches, self.seconds = iter(batches), 0.0

    def __next__(self) -> Batch:
        began = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - began


def _as_it_is(batch: Any) -> Any:
    return batch
