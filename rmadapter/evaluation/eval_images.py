"""How images come to an evaluation: read, preprocessed, in batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from rmadapter.data import EvalImages, Item, Preprocessing, Read, collate_readable, eval_transform
from rmadapter.errors import InputError


@dataclass(frozen=True)
class Loading:
    """How images come to an evaluation."""

    preprocessing: Preprocessing
    batch_size: int = 64
    workers: int = 2
    skip_bad: bool = False


def readable_batches(
    read: Read, items: Sequence[Item], loading: Loading, *, name: str = "", transform: Callable[..., Any] | None = None
) -> Iterator[tuple[Any, Tensor]]:
    """Images [n, 3, size, size] and labels [n] of ``items`` in order, as they go into a model that is tested.

    With ``transform`` the first is what that makes of images, batched.

    Raises:
        InputError: an unreadable image; with ``loading.skip_bad`` such are left out, and one has to be left.
    """
    loader = DataLoader(
        EvalImages(read, items, transform or eval_transform(loading.preprocessing)),
        loading.batch_size,
        num_workers=loading.workers,
        collate_fn=collate_readable,
        generator=torch.Generator(),
    )
    quiet, seen = not sys.stderr.isatty(), 0
    for images, labels, unreadable in tqdm(
        loader, desc=f"evaluate {name}".strip(), unit="batch", disable=quiet, leave=False
    ):
        if unreadable and not loading.skip_bad:
            raise InputError(f"{unreadable[0]}; --skip-bad-images leaves such images out")
        if len(labels):
            seen += len(labels)
            yield images, labels
    if not seen:
        raise InputError(f"none of {len(items)} images{' for ' + name if name else ''} could be read")
