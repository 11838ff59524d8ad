"""Which prompts a step computes together: the classes of this process, in chunks, in the order of their length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from rmadapter.clip.layout import Layout, shared_start
from rmadapter.clip.obstacles import shared_start_obstacle
from rmadapter.clip.prompts import Prompts
from rmadapter.clip.towers import text_is_trimmable
from rmadapter.config.shortcuts import StepConfig
from rmadapter.errors import InputError
from rmadapter.step.chunks import CHUNK_TOKENS, Chunk, by_length, by_memory
from rmadapter.step.costs import tower_shape
from rmadapter.step.distributed import Ranks
from rmadapter.step.plain import RMAdapterCLIP
from rmadapter.tuners.encoder import Entry
from rmadapter.tuners.sites import CLASS
from rmadapter.tuners.text_encoder import TextEncoder


@dataclass
class ClassChunk:
    """The prompts of one chunk, and what of the frozen model is kept of them.

    Attributes:
        rows: int64 [classes], which of the own classes they are.
        prompts: cut to the chunk's length; ``layout``: how activations lie; ``weights``: how often each of their tokens
            counts in the reconstruction, see ``Layout.weights``.
        recompute: compute the tuned pass again in the backward pass.
        entry, target: where training begins, and frozen features, of sentences those of each; None where they are
            computed at every step.
    """

    rows: Tensor
    prompts: Prompts
    weights: Tensor
    layout: Layout
    recompute: bool
    entry: Entry | None = None
    target: Tensor | None = None


class ClassPlan(NamedTuple):
    """The classes of one process.

    Attributes:
        own: int64 [own classes], which of all they are; ``prompts`` and ``counted`` are theirs.
        order: int64 [own classes], in which they stand in ``chunks``.
        text_bound: the memory that the chunks are cut for, None where all prompts fit.
    """

    own: Tensor
    prompts: Prompts
    counted: Tensor
    order: Tensor
    chunks: list[Chunk]
    text_bound: int | None


def plan_classes(
    model: RMAdapterCLIP,
    text: TextEncoder,
    shortcuts: StepConfig,
    ranks: Ranks,
    *,
    text_bytes: int | None,
    recompute: bool,
    images: int,
) -> ClassPlan:
    """Chunks of the own classes in the order of their length, or of their labels where they are not trimmed.

    Arguments as those of ``TrainStep``.

    Raises:
        InputError: ``text_bytes`` is less than one class takes, or there are more processes than classes.
    """
    if ranks.world > len(model.class_names):
        raise InputError(f"{ranks.world} processes share {len(model.class_names)} classes; valid: at most one a class")
    # Where classes are computed for each image the images alone are shared.
    count = len(model.prompts.valid)
    own = torch.arange(*((0, count) if model.per_image else ranks.part(count)), device=model.prompts.valid.device)
    prompts, counted = model.prompts.rows(own), model.counted_text[own]
    valid = prompts.valid
    count, length = valid.shape
    lengths = valid.sum(1)
    trimmed = shortcuts.trim and shortcuts.class_chunks and text_is_trimmable(model.clip)
    order = lengths.argsort(stable=True) if trimmed else torch.arange(count, device=valid.device)
    shares = shortcuts.shared_start and shared_start_obstacle(model.clip) is None
    # Dropout draws for every row.
    shared = shared_start(prompts.fixed, lengths) if shares and not text.sites.random else 0
    ends = text.tower.place(prompts.tokens)
    if shared and isinstance(ends, Tensor):  # each row keeps the token that it is pooled at
        shared = min(shared, int(ends.min()))
    if shared and prompts.slots is not None:  # among them only the learned ones behind the first token
        ordered = torch.arange(1, 1 + prompts.slots.shape[1], device=valid.device)
        apart = (prompts.slots != ordered).any(0)
        if bool(apart.any()):
            shared = min(shared, int(prompts.slots[:, apart].min()))
    if any(edit.per == CLASS for edit in text.sites.edits):
        shared = min(shared, 1)
    chunks = [Chunk(0, count, length, shared)]
    if trimmed:
        chunks = by_length(lengths[order].tolist(), CHUNK_TOKENS.get(valid.device.type, 0), shared)
    bound = None
    if shortcuts.class_chunks and text_bytes is not None:
        shape = tower_shape(model.adapted, "text", stream=text.stream.itemsize)
        times = images if model.per_image else 1
        within = by_memory(chunks, lambda chunk: times * shape.saved_bytes(chunk), text_bytes)
        bound, chunks = (text_bytes if within != chunks else None), within
    chunks = [replace(chunk, recompute=chunk.recompute or recompute) for chunk in chunks]
    return ClassPlan(own, prompts, counted, order, chunks, bound)
