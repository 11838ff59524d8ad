"""The training step that computes nothing twice: logits and losses of a batch, the frozen part shared or kept.

``TrainStep`` gives what ``RMAdapterCLIP`` gives in training mode, to fp32 rounding, for less: see ``StepConfig`` for
its shortcuts, each of which can be left out, and ``encoders`` for how a tower is split.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rmadapter.clip.classifier import CLIPClassifier, Output
from rmadapter.clip.layout import Layout
from rmadapter.clip.prompts import Prompts
from rmadapter.config.shortcuts import StepConfig
from rmadapter.objectives import losses
from rmadapter.step.class_plan import ClassChunk, plan_classes
from rmadapter.step.distributed import Ranks
from rmadapter.step.image_views import split_views
from rmadapter.step.plain import RMAdapterCLIP, chosen
from rmadapter.tuners.encoder import Entry
from rmadapter.tuners.image_encoder import ImageEncoder
from rmadapter.tuners.sites import CLASS
from rmadapter.tuners.text_encoder import TextEncoder
from rmadapter.tuners.tuner import Features, Values, mixed


class Views(NamedTuple):
    """What the frozen model makes of some images: where training begins, and its features where they are wanted."""

    entry: Entry
    target: Tensor | None


class TrainStep(nn.Module):
    """A training step of ``model``: ``forward(images, labels) -> Output``, to be called in training mode.

    Args:
        model: classes, adapters and weights of the loss terms. Prompts are taken as they are when this is made.
        shortcuts: which of the shortcuts are taken.
        text_bytes: memory for the activations of all classes' prompts; None: without a bound.
        stream: dtype of the residual stream from the first adapted block on; None: that of the weights.
        recompute: recompute each adapted block of the image tower, and every chunk of classes, in backward.
        ranks: this process among those that share the classes and the images of a batch.
        images: of a batch, which the classes are computed for one by one where their features depend on the image.

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
        images: int = 1,
    ):
        super().__init__()
        self.ranks = ranks or Ranks()
        self.images = images
        shortcuts = shortcuts or StepConfig()
        self.model, self.shortcuts = model, shortcuts
        settings = {"by_token": shortcuts.last_token, "stream": stream, "packed": shortcuts.packed_weights}
        self.image = ImageEncoder(model.adapted, **settings, recompute=recompute)
        self.text = TextEncoder(model.adapted, **settings)
        self.frozen_stream = model.config.rec_stream == "frozen"
        plan = plan_classes(
            model, self.text, shortcuts, self.ranks, text_bytes=text_bytes, recompute=recompute, images=images
        )
        self.chunks, self.text_bound = plan.chunks, plan.text_bound
        self.own, self.order, self.inverse = plan.own, plan.order, plan.order.argsort()
        self.prompts, self.counted = plan.prompts, plan.counted
        self._classes: list[ClassChunk] | None = None

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
        encoder = self.image if tower == "vision" else self.text
        return self.model.config.reconstruct and weight > 0 and bool(encoder.branches)

    @property
    def keeps_target(self) -> bool:
        """Whether ``views`` have the images' frozen features: where they are wanted and nothing else gives them."""
        if self.model.loss.reads_two_views:
            return True
        if self.image.first is None:
            return False
        # The classes' features are made of them before the image tower's own pass.
        return self.model.per_image or (self.model.loss.needs_image and not self.model.rebuilds_frozen("vision"))

    def forward(
        self,
        images: Tensor | None,
        labels: Tensor,
        views: Views | None = None,
        share: float = 1.0,
        drawn: Tensor | None = None,
    ) -> Output:
        """Logits [batch, classes] and losses of ``images`` [batch, 3, size, size] with ``labels`` [batch] (int64).

        ``views`` are those of the images where they are at hand; the images are then not read. ``share`` is the own
        number of images times that of processes, divided by the number of all images: the factor on means over images.
        Two views of the images, and ``drawn``, are as in ``RMAdapterCLIP.forward``.
        """
        model = self.model
        model.check_drawn(drawn)
        if not model.per_image:  # before the images, so that memory is asked for in one order
            of_text: dict[str, Tensor] = {}
            values = model.adapted.values(None)
            text = self._text_features(of_text, values.get("text"), drawn=drawn)
        of_images: dict[str, Tensor] = {}
        if views is None:
            assert images is not None  # one of the two is at hand
            views = self.views(images)
        frozen = views.entry.output if self.image.first is None else views.target
        if model.per_image:
            assert frozen is not None  # ``keeps_target`` has seen to it
            of_text, values = {}, model.adapted.values(frozen)
            text = self._text_features(of_text, values["text"], len(frozen), drawn)
        image, frozen = self._image_features(views, of_images, values.get("vision"))
        features = model.headed(image, text)
        answers = model.answers(features)
        logits = mixed(answers)
        of_images["cross_entropy"] = losses.cross_entropy(answers, labels, model.loss.classification)
        self._compare(features, frozen, logits, of_images, of_text, drawn)
        if share != 1:
            of_images = {name: share * value for name, value in of_images.items()}
        return Output(logits, losses.with_total({**of_images, **of_text}, model.loss))

    def _compare(
        self,
        features: Features,
        frozen: Tensor | None,
        logits: Tensor,
        of_images: dict[str, Tensor],
        of_text: dict[str, Tensor],
        drawn: Tensor | None,
    ) -> None:
        """Add the terms that compare with the frozen model's features ``frozen`` [n, embed] of the images."""
        loss = self.model.loss
        if not self.model.compares_towers and loss.lambda3:
            assert frozen is not None  # the views have them
            of_images["consistency_image"] = losses.consistency(features.image, frozen, loss.distance)
        if not self.model.compares_towers and loss.lambda4:
            of_text["consistency_text"] = losses.consistency(features.text, self._all_targets(drawn), loss.distance)
        if loss.needs_probabilities:
            assert frozen is not None
            zeroshot = CLIPClassifier.logits(self.model, frozen, self._all_targets(drawn))
            of_images["distillation"] = losses.distillation(logits, zeroshot)

    def _all_targets(self, drawn: Tensor | None) -> Tensor:
        """Frozen text features of all classes, those of the other processes too."""
        assert self._classes is not None  # the text side has been computed
        own = torch.cat([self._target(classes, drawn) for classes in self._classes])[self.inverse]
        return self.ranks.gather_rows(own, len(self.model.class_names)).detach()

    @torch.no_grad()
    def views(self, images: Tensor) -> Views:
        """The frozen model's part in a step: everything below the adapters and, if wanted, the frozen features."""
        found = [self._views(piece) for piece in images.split(self.image.at_once(len(images)))]
        if len(found) == 1:
            return found[0]
        entries, targets = zip(*found, strict=True)
        return Views(
            Entry(*(torch.cat(parts) for parts in zip(*entries, strict=True))),
            None if targets[0] is None else torch.cat(targets),
        )

    def pieces(self, entry: Entry) -> list[Entry]:
        """The images of ``entry`` in as many parts as go through the tower one after the other."""
        at_once = self.image.at_once(len(entry.output))
        return [Entry(*piece) for piece in zip(*(tensor.split(at_once) for tensor in entry), strict=True)]

    def _views(self, images: Tensor) -> Views:
        two_views = self.model.loss.reads_two_views
        images, others = split_views(images, two_views)
        entry = self.image.begin(images)
        if not self.keeps_target:
            return Views(entry, None)
        shared = entry if self.shortcuts.image_prefix and not two_views else self.image.begin(others)
        return Views(entry, self.image.finish(self.image.frozen(shared, self.image.layout)[0]))

    def _image_features(
        self, views: Views, terms: dict[str, Tensor], values: Values | None
    ) -> tuple[Tensor, Tensor | None]:
        """Tuned image features, and frozen ones where they are wanted; adds the image tower's terms."""
        if self.image.first is None:
            own = views.entry.output
            return self._compared(own, own if views.target is None else views.target, terms)
        reconstruct = self.reconstructs("vision")
        found = [
            self._image_part(*piece, reconstruct and not self.frozen_stream, values)
            for piece in self.pieces(views.entry)
        ]
        features, rec = torch.cat([piece[0] for piece in found]), reduce(torch.add, (piece[1] for piece in found))
        target = views.target
        if reconstruct and self.frozen_stream:
            x, per_token = self.image.frozen(views.entry, self.image.layout, True)
            rec = self._reconstruction_sum("vision", per_token)
            if self.model.loss.needs_image and target is None:
                target = self.image.finish(x)
        if reconstruct:
            counted = self.model.counted["vision"]
            # The frozen pass has no learned tokens.
            every = self.image.tokens - (self.image.sites.added if self.frozen_stream else 0)
            tokens = every if counted is None else counted.sum()
            terms["reconstruction_vision"] = rec / (len(features) * tokens)
        return self._compared(features, target, terms)

    def _compared(
        self, features: Tensor, frozen: Tensor | None, terms: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Both features; adds their distance where it is that of what the tower gives."""
        loss = self.model.loss
        if loss.lambda3 and self.model.compares_towers:
            assert frozen is not None  # the views have them
            terms["consistency_image"] = losses.consistency(features, frozen, loss.distance)
        return features, frozen

    def _image_part(
        self, adapter_input: Tensor, output: Tensor, reconstruct: bool, values: Values | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tuned features [n, embed], and the sum of the reconstruction's losses over tokens and adapters."""
        x, per_token = self.image.tuned(Entry(adapter_input, output), self.image.layout, reconstruct, values)
        return self.image.finish(x, self.image.sites.read), self._reconstruction_sum("vision", per_token)

    def _text_part(
        self,
        adapter_input: Tensor,
        output: Tensor,
        layout: Layout,
        tokens: Tensor,
        weights: Tensor,
        reconstruct: bool,
        values: Values | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The same for some prompts."""
        x, per_token = self.text.tuned(Entry(adapter_input, output), layout, reconstruct, values)
        return self.text.finish(x, tokens, layout), self._reconstruction_sum("text", per_token, weights)

    def _reconstruction_sum(self, tower: str, per_token: list[Tensor], weights: Tensor | None = None) -> Tensor:
        """Over all tokens that count, of images those of the model; ``weights`` are ``ClassChunk.weights``."""
        if not per_token:
            return self.model.prompts.tokens.new_zeros((), dtype=torch.float32)
        if weights is None and (counted := self.model.counted[tower]) is not None:
            weights = counted.to(per_token[0].dtype)
        return losses.reconstruction_sum(per_token, self.model.config.objective, self.model.width[tower], weights)

    def prepare(self) -> None:
        """Compute now what is kept of prompts and frozen matrices, and not in the first step."""
        if self._classes is None:
            for encoder in (self.image, self.text):
                encoder.prepare()
            self._classes = self._begin_classes()

    def _text_features(
        self, terms: dict[str, Tensor], values: Values | None, images: int = 1, drawn: Tensor | None = None
    ) -> Tensor:
        """Tuned text features [classes, embed] in the order of the labels; adds the text tower's terms.

        Where they depend on the image they are [images, classes, embed].
        """
        self.prepare()
        assert self._classes is not None
        found = [self._chunk(classes, values, images) for classes in self._classes]
        count, world = len(self.model.class_names), self.ranks.world
        if self.model.per_image:
            each = [chunk[0].unflatten(0, (images, -1)) for chunk in found]
            return torch.cat(each, 1)[:, self.inverse]
        features = torch.cat([chunk[0] for chunk in found])
        if self.reconstructs("text"):
            tokens = self.model.counted_text.sum()
            terms["reconstruction_text"] = world * reduce(torch.add, (chunk[1] for chunk in found)) / tokens
        if self.model.loss.lambda4 and self.model.compares_towers:
            target = torch.cat([self._target(classes, drawn) for classes in self._classes])
            distance = self.model.loss.distance
            terms["consistency_text"] = world * losses.consistency_sum(features, target, distance) / count
        return self.ranks.gather_rows(features[self.inverse], count)

    @torch.no_grad()
    def _begin_classes(self) -> list[ClassChunk]:
        """What of the prompts is computed once: their chunks, where training begins in each, frozen features."""
        classes = []
        for chunk in self.chunks:
            rows = self.order[chunk.start : chunk.stop]
            prompts, counted = self.prompts.rows(rows, chunk.length), self.counted[rows, : chunk.length]
            layout = self.text.layout(prompts, chunk.shared)
            made = ClassChunk(rows, prompts, layout.weights(counted), layout, chunk.recompute)
            if self.shortcuts.frozen_targets and self.model.loss.needs_text:
                made.target = self._targets_of(made)
            if self.shortcuts.text_prefix:
                made.entry = self.text.begin(prompts.tokens, made.layout)
            classes.append(made)
        return classes

    def _chunk(self, classes: ClassChunk, values: Values | None, images: int) -> tuple[Tensor, Tensor]:
        if values:
            # Of what each class has of its own, that of the classes here.
            rows = self.own[classes.rows]
            per = {edit.block: edit.per for edit in self.text.sites.edits}
            values = {block: value[rows] if per[block] == CLASS else value for block, value in values.items()}
        if classes.recompute:
            drops = self.text.sites.random
            return checkpoint(self._tuned, classes, values, images, use_reentrant=False, preserve_rng_state=drops)
        return self._tuned(classes, values, images)

    def _tuned(self, classes: ClassChunk, values: Values | None, images: int) -> tuple[Tensor, Tensor]:
        """Tuned features [images * classes, embed], and the sum of the reconstruction's losses."""
        reconstruct, entry = self.reconstructs("text"), self._entry(classes)
        layout = classes.layout if images == 1 else classes.layout._replace(groups=images)
        features, rec = self._text_part(
            *entry, layout, classes.prompts.tokens, classes.weights, reconstruct and not self.frozen_stream, values
        )
        if reconstruct and self.frozen_stream:
            per_token = self.text.frozen(entry, classes.layout, True)[1]
            rec = self._reconstruction_sum("text", per_token, classes.weights)
        return features, rec

    def _entry(self, classes: ClassChunk) -> Entry:
        if classes.entry is not None:
            return classes.entry
        with torch.no_grad():
            return self.text.begin(classes.prompts.tokens, classes.layout)

    @torch.no_grad()
    def _target(self, classes: ClassChunk, drawn: Tensor | None) -> Tensor:
        """Frozen features [classes, embed], kept or computed; of sentences those of number ``drawn``."""
        if classes.target is not None:
            return chosen(classes.target, drawn) if self.model.draws else classes.target
        if self.model.draws:
            assert drawn is not None  # ``check_drawn`` has looked
            return self._frozen_of(self.model.targets[int(drawn)].rows(self.own[classes.rows]))
        return self._targets_of(classes)

    @torch.no_grad()
    def _targets_of(self, classes: ClassChunk) -> Tensor:
        """Frozen features [classes, embed] to compare with; of sentences [sentences, classes, embed]."""
        if not self.model.targets:
            return self._frozen(self._entry(classes), classes.prompts, classes.layout)
        rows = self.own[classes.rows]
        each = torch.stack([self._frozen_of(prompts.rows(rows)) for prompts in self.model.targets])
        return each if self.model.draws else each.mean(0)

    def _frozen_of(self, prompts: Prompts) -> Tensor:
        layout = self.text.layout(prompts)
        return self._frozen(self.text.begin(prompts.tokens, layout), prompts, layout)

    def _frozen(self, entry: Entry, prompts: Prompts, layout: Layout) -> Tensor:
        x, _ = self.text.frozen(entry, layout)
        return self.text.finish(x, prompts.tokens, layout)
