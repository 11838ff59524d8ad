"""The training step that computes nothing twice: logits and losses of a batch, the frozen part shared or kept.

``TrainStep`` gives what ``RMAdapterCLIP`` gives in training mode, to fp32 rounding, for less: see ``StepConfig`` for
its shortcuts, each of which can be left out, and ``encoders`` for how a tower is split.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rmadapter.clip.classifier import Output
from rmadapter.clip.layout import Layout, shared_start
from rmadapter.clip.obstacles import shared_start_obstacle
from rmadapter.clip.towers import text_is_trimmable
from rmadapter.config.shortcuts import StepConfig
from rmadapter.errors import InputError
from rmadapter.objectives import losses
from rmadapter.step.chunks import CHUNK_TOKENS, Chunk, by_length, by_memory, in_cache
from rmadapter.step.costs import tower_shape
from rmadapter.step.distributed import Ranks
from rmadapter.step.plain import RMAdapterCLIP
from rmadapter.tuners.encoders import Entry, ImageEncoder, TextEncoder


class Views(NamedTuple):
    """What the frozen model makes of some images: where training begins, and its features where they are wanted."""

    entry: Entry
    target: Tensor | None


@dataclass
class _Classes:
    """The prompts of one chunk, and what of the frozen model is kept of them.

    Attributes:
        tokens: int64 [classes, length]; ``counted``: bool, by the reconstruction; ``layout``: how activations lie.
        recompute: compute the adapted pass again in the backward pass.
        entry, target: where training begins, and frozen features; None where they are computed at every step.
    """

    tokens: Tensor
    counted: Tensor
    layout: Layout
    recompute: bool
    entry: Entry | None = None
    target: Tensor | None = None


class TrainStep(nn.Module):
    """A training step of ``model``: ``forward(images, labels) -> Output``, to be called in training mode.

    Args:
        model: classes, adapters and weights of the loss terms. Prompts are taken as they are when this is made.
        shortcuts: which of the shortcuts are taken.
        text_bytes: memory for the activations of all classes' prompts; None: without a bound.
        stream: dtype of the residual stream from the first adapted block on; None: that of the weights.
        recompute: recompute each adapted block of the image tower, and every chunk of classes, in backward.
        ranks: this process among those that share the classes and the images of a batch.

    Attributes:
        chunks: of the classes.
        text_bound: ``text_bytes`` where the chunks are others for it, None where all prompts fit.

    Raises:
        InputError: ``text_bytes`` is less than one class takes, or there are more processes than classes.
    """

    def __init__(
        self,
        model: RMAdapterCLIP,
        shortcuts: StepConfig | None = None,
        *,
        text_bytes: int | None = None,
        stream: torch.dtype | None = None,
        recompute: bool = False,
        ranks: Ranks | None = None,
    ):
        super().__init__()
        self.ranks = ranks or Ranks()
        shortcuts = shortcuts or StepConfig()
        self.model, self.shortcuts = model, shortcuts
        settings = {"by_token": shortcuts.last_token, "stream": stream, "packed": shortcuts.packed_weights}
        self.image = ImageEncoder(model.adapted, **settings, recompute=recompute)
        self.text = TextEncoder(model.adapted, **settings)
        self.frozen_stream = model.config.rec_stream == "frozen"
        self.text_bound: int | None = None
        self.chunks = self._plan(text_bytes, recompute)
        self._classes: list[_Classes] | None = None

    def _plan(self, text_bytes: int | None, recompute: bool) -> list[Chunk]:
        """Chunks of the own classes in the order of their length, or of their labels where they are not trimmed."""
        if self.ranks.world > len(self.model.class_names):
            raise InputError(
                f"{self.ranks.world} processes share {len(self.model.class_names)} classes; valid: at most one a class"
            )
        own = slice(*self.ranks.part(len(self.model.prompts.valid)))
        self.tokens, valid = self.model.prompts.tokens[own], self.model.prompts.valid[own]
        self.counted = self.model.counted_text[own]
        count, length = valid.shape
        lengths = valid.sum(1)
        trimmed = self.shortcuts.trim and self.shortcuts.class_chunks and text_is_trimmable(self.model.clip)
        self.order = lengths.argsort(stable=True) if trimmed else torch.arange(count, device=valid.device)
        shares = self.shortcuts.shared_start and shared_start_obstacle(self.model.clip) is None
        shared = shared_start(self.tokens, lengths) if shares else 0
        chunks = [Chunk(0, count, length, shared)]
        if trimmed:
            chunks = by_length(lengths[self.order].tolist(), CHUNK_TOKENS.get(valid.device.type, 0), shared)
        if self.shortcuts.class_chunks and text_bytes is not None:
            shape = tower_shape(self.model.adapted, "text", stream=self.text.stream.itemsize)
            within = by_memory(chunks, shape.saved_bytes, text_bytes)
            self.text_bound, chunks = (text_bytes if within != chunks else None), within
        self.inverse = self.order.argsort()
        return [replace(chunk, recompute=chunk.recompute or recompute) for chunk in chunks]

    def compile_parts(self, **options) -> None:
        """Run the adapted part of both towers through ``torch.compile``, in one graph each; before the first step.

        Recomputation stands around what is compiled and not inside it: around a chunk of prompts, and around each block
        of the image tower, which then are graphs of their own. ``options`` are those of ``torch.compile``.
        """
        import torch._dynamo.config as dynamo
        import torch._functorch.config as functorch  # both take a second to import

        options = {"fullgraph": True, "dynamic": False, **options}
        # Gradient norms go through the graph once more before the backward pass does.
        functorch.donated_buffer = False
        # A graph for each shape of chunk, or each block, where images may come in pieces of two sizes, and each of them
        # again for a short last batch.
        graphs = 2 * max(len({(c.stop - c.start, c.length) for c in self.chunks}), 2 * self.image.depth)
        dynamo.recompile_limit = max(dynamo.recompile_limit, graphs)
        if self.image.recompute:
            self.image.compile_blocks(**options)
        else:
            self._image_part = torch.compile(self._image_part, **options)  # type: ignore[method-assign]
        self._text_part = torch.compile(self._text_part, **options)  # type: ignore[method-assign]

    def reconstructs(self, tower: str) -> bool:
        """Whether the loss has a reconstruction term of this tower."""
        weight = self.model.loss.lambda1 if tower == "vision" else self.model.loss.lambda2
        return self.model.config.reconstruct and weight > 0

    @property
    def keeps_target(self) -> bool:
        """Whether ``views`` have the images' frozen features: where they are wanted and no other pass gives them."""
        return self.model.loss.lambda3 > 0 and not (
            self.image.first is not None and self.model.rebuilds_frozen("vision")
        )

    def forward(self, images: Tensor | None, labels: Tensor, views: Views | None = None, share: float = 1.0) -> Output:
        """Logits [batch, classes] and losses of ``images`` [batch, 3, size, size] with ``labels`` [batch] (int64).

        ``views`` are those of the images where they are at hand; the images are then not read. ``share`` is the own
        number of images times that of processes, divided by the number of all images: the factor on means over images.
        """
        terms: dict[str, Tensor] = {}
        text = self._text_features(terms)
        of_images: dict[str, Tensor] = {}
        if views is None:
            assert images is not None  # one of the two is at hand
            views = self.views(images)
        image = self._image_features(views, of_images)
        logits = self.model.logits(image, text)
        of_images = {"cross_entropy": F.cross_entropy(logits, labels), **of_images}
        if share != 1:
            of_images = {name: share * value for name, value in of_images.items()}
        terms = {**of_images, **terms}
        terms["total"] = losses.total(terms, self.model.loss)
        return Output(logits, terms)

    @torch.no_grad()
    def views(self, images: Tensor) -> Views:
        """The frozen model's part in a step: everything below the adapters and, if wanted, the frozen features."""
        found = [self._views(piece) for piece in images.split(self._images_at_once(len(images)))]
        if len(found) == 1:
            return found[0]
        entries, targets = zip(*found, strict=True)
        return Views(
            Entry(*(torch.cat(parts) for parts in zip(*entries, strict=True))),
            None if targets[0] is None else torch.cat(targets),
        )

    def _images_at_once(self, count: int) -> int:
        tokens = self.model.clip.visual.positional_embedding.shape[0]
        return in_cache(count, tokens * self.image.hidden * self.image.dtype.itemsize, self.model.prompts.tokens.device)

    def pieces(self, entry: Entry) -> list[Entry]:
        """The images of ``entry`` in as many parts as go through the tower one after the other."""
        at_once = self._images_at_once(len(entry.output))
        return [Entry(*piece) for piece in zip(*(tensor.split(at_once) for tensor in entry), strict=True)]

    def _views(self, images: Tensor) -> Views:
        entry = self.image.begin(images)
        if not self.keeps_target:
            return Views(entry, None)
        shared = entry if self.shortcuts.image_prefix else self.image.begin(images)
        return Views(entry, self.image.finish(self.image.frozen(shared, self.image.layout)[0]))

    def _image_features(self, views: Views, terms: dict[str, Tensor]) -> Tensor:
        """Adapted image features; adds the image tower's terms."""
        reconstruct = self.reconstructs("vision") and self.image.first is not None
        found = [self._image_part(*piece, reconstruct and not self.frozen_stream) for piece in self.pieces(views.entry)]
        features, rec = torch.cat([piece[0] for piece in found]), reduce(torch.add, (piece[1] for piece in found))
        target = views.target
        if reconstruct and self.frozen_stream:
            x, per_token = self.image.frozen(views.entry, self.image.layout, True)
            rec = self._reconstruction_sum("vision", per_token)
            target = self.image.finish(x) if self.model.loss.lambda3 else None
        if reconstruct:
            images, tokens, _ = views.entry.adapter_input.shape
            counted = self.model.counted["vision"]
            terms["reconstruction_vision"] = rec / (images * (tokens if counted is None else counted.sum()))
        if target is not None:
            terms["consistency_image"] = losses.consistency(features, target)
        return features

    def _image_part(self, adapter_input: Tensor, output: Tensor, reconstruct: bool) -> tuple[Tensor, Tensor]:
        """Adapted features [n, embed], and the sum of the reconstruction's losses over tokens and adapters."""
        x, per_token = self.image.adapted(Entry(adapter_input, output), self.image.layout, reconstruct)
        return self.image.finish(x), self._reconstruction_sum("vision", per_token)

    def _text_part(
        self, adapter_input: Tensor, output: Tensor, layout: Layout, tokens: Tensor, counted: Tensor, reconstruct: bool
    ) -> tuple[Tensor, Tensor]:
        """The same for some prompts."""
        x, per_token = self.text.adapted(Entry(adapter_input, output), layout, reconstruct)
        return self.text.finish(x, tokens, layout), self._reconstruction_sum("text", per_token, layout, counted)

    def _reconstruction_sum(
        self, tower: str, per_token: list[Tensor], layout: Layout | None = None, counted: Tensor | None = None
    ) -> Tensor:
        """Over all tokens that count; one that all rows share counts once a row."""
        if not per_token:
            return self.model.prompts.tokens.new_zeros((), dtype=torch.float32)
        of: dict[str, Any] = {"objective": self.model.config.objective, "width": self.model.width[tower]}
        if layout is None or not layout.shared:
            counted = self.model.counted[tower] if counted is None else counted
            return losses.reconstruction_sum(per_token, counted=counted, **of)
        shared = layout.shared
        assert counted is not None  # prompts alone begin alike, and say which of their tokens count
        own = losses.reconstruction_sum([layout.own(x) for x in per_token], counted=counted[:, shared:], **of)
        start = losses.reconstruction_sum([layout.start(x) for x in per_token], counted=counted[:1, :shared], **of)
        return own + layout.rows * start

    def prepare(self) -> None:
        """Compute now what is kept of prompts and frozen matrices, and not in the first step."""
        if self._classes is None:
            for encoder in (self.image, self.text):
                encoder.prepare()
            self._classes = self._begin_classes()

    def _text_features(self, terms: dict[str, Tensor]) -> Tensor:
        """Adapted text features [classes, embed] in the order of the labels; adds the text tower's terms."""
        self.prepare()
        assert self._classes is not None
        found = [self._chunk(classes) for classes in self._classes]
        features = torch.cat([chunk[0] for chunk in found])
        count, world = len(self.model.class_names), self.ranks.world
        if self.reconstructs("text") and self.text.first is not None:
            tokens = self.model.counted_text.sum()
            terms["reconstruction_text"] = world * reduce(torch.add, (chunk[1] for chunk in found)) / tokens
        if self.model.loss.lambda4:
            target = torch.cat([self._target(classes) for classes in self._classes])
            terms["consistency_text"] = world * losses.consistency_sum(features, target) / count
        return self.ranks.gather_rows(features[self.inverse], count)

    @torch.no_grad()
    def _begin_classes(self) -> list[_Classes]:
        """What of the prompts is computed once: their chunks, where training begins in each, frozen features."""
        classes = []
        for chunk in self.chunks:
            rows = self.order[chunk.start : chunk.stop]
            tokens, counted = self.tokens[rows, : chunk.length], self.counted[rows, : chunk.length]
            made = _Classes(tokens, counted, self.text.layout(tokens, chunk.shared), chunk.recompute)
            if self.shortcuts.frozen_targets and self.model.loss.lambda4:
                made.target = self._target(made)
            if self.shortcuts.text_prefix:
                made.entry = self.text.begin(tokens, made.layout)
            classes.append(made)
        return classes

    def _chunk(self, classes: _Classes) -> tuple[Tensor, Tensor]:
        if classes.recompute:
            return checkpoint(self._adapted, classes, use_reentrant=False, preserve_rng_state=False)
        return self._adapted(classes)

    def _adapted(self, classes: _Classes) -> tuple[Tensor, Tensor]:
        """Adapted features [classes, embed], and the sum of the reconstruction's losses over tokens and adapters."""
        reconstruct, entry = self.reconstructs("text"), self._entry(classes)
        features, rec = self._text_part(
            *entry, classes.layout, classes.tokens, classes.counted, reconstruct and not self.frozen_stream
        )
        if reconstruct and self.frozen_stream:
            per_token = self.text.frozen(entry, classes.layout, True)[1]
            rec = self._reconstruction_sum("text", per_token, classes.layout, classes.counted)
        return features, rec

    def _entry(self, classes: _Classes) -> Entry:
        if classes.entry is not None:
            return classes.entry
        with torch.no_grad():
            return self.text.begin(classes.tokens, classes.layout)

    @torch.no_grad()
    def _target(self, classes: _Classes) -> Tensor:
        """Frozen features [classes, embed], kept or computed."""
        if classes.target is not None:
            return classes.target
        x, _ = self.text.frozen(self._entry(classes), classes.layout)
        return self.text.finish(x, classes.tokens, classes.layout)
