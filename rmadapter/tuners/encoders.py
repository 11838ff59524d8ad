"""The two towers split where training begins: what is frozen up to there, and what runs at every step.

A tower's blocks below the first adapted one never change, nor does the frozen part of that one, whose adapter stands
beside it. ``enter`` computes both once, without a graph; ``adapted`` and ``frozen`` go on from there, and share it:

    embed -> enter -> Entry -> adapted -> finish -> features, reconstruction losses
                            -> frozen  -> finish -> features of the untouched model
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rmadapter.clip.blocks import frozen_matrices, frozen_part, frozen_part_at, normed
from rmadapter.clip.frozen_linear import frozen_linear, packed_matrix, packing_obstacle
from rmadapter.clip.layout import Layout
from rmadapter.clip.obstacles import blocks_obstacle, is_causal, last_block_obstacle
from rmadapter.clip.prompts import embed_prompts, end_of_text, pool_text, project_text
from rmadapter.clip.towers import find_towers, pooled_token
from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter.tuners.branch import adapter_of, adapter_term


class Entry(NamedTuple):
    """Where a tower's trained part begins.

    Attributes:
        adapter_input: what the first adapter reads, in the compute dtype, its tokens as the ``Layout`` has them.
        output: the frozen output of that adapter's block, of the same shape, or [rows, 1, D] where the block is the
            last one and the tower is pooled at one token.
    """

    adapter_input: Tensor
    output: Tensor


class Encoder:
    """One tower of an adapted model, run block by block.

    Args:
        model: the model with its adapters.
        modality: "vision" or "text".
        by_token: compute the last block at the pooled token alone, where the tower allows it.
        stream: dtype of the residual stream from the first adapted block on; None: that of the weights.
        recompute: recompute each adapted block in the backward pass.
        packed: on a CPU, keep the blocks' frozen matrices in the layout that oneDNN multiplies in, too.

    It holds no state but frozen matrices and what the model's device and dtype decide (``fits`` says whether they are
    still the same): adapters are looked up in the model, and what is wanted is an argument.
    """

    def __init__(
        self,
        model: AdaptedCLIP,
        modality: str,
        *,
        by_token: bool = True,
        stream: torch.dtype | None = None,
        recompute: bool = False,
        packed: bool = True,
    ):
        self.clip, self.modality, self.recompute = model.clip, modality, recompute
        tower = find_towers(model.clip)[modality]
        self.blocks, self.kind = tower.blocks, tower.kind
        self.pre_ln = model.config.adapter_input == "pre_ln"
        self.dtype: torch.dtype = tower.transformer.get_cast_dtype()
        self.stream = stream or self.dtype
        self.device = model.clip.logit_scale.device
        packed = packed and packing_obstacle(self.device, self.dtype) is None
        self.linear = frozen_linear if packed else F.linear
        self.matrices: list[Tensor] = []
        adapted = [number for number, block in enumerate(self.blocks) if adapter_of(block) is not None]
        self.first: int | None = adapted[0] if adapted else None
        self.by_token = by_token and last_block_obstacle(model.clip, modality) is None
        self.causal = is_causal(self.mask)

    @property
    def mask(self) -> Tensor | None:
        """The additive mask of a causal tower, where the model has it now."""
        return getattr(self.clip, self.kind.causal_mask) if self.kind.causal_mask else None

    @property
    def fits(self) -> bool:
        """Whether the model is still where it was, and in the same dtype; after a move encoders are made anew."""
        dtype = find_towers(self.clip)[self.modality].transformer.get_cast_dtype()
        return (self.clip.logit_scale.device, dtype) == (self.device, self.dtype)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def hidden(self) -> int:
        """Width of the MLPs' hidden layer."""
        return self.blocks[0].mlp.c_fc.out_features

    def prepare(self) -> None:
        """Lay out now what products with frozen matrices need, those of the gradient too, and not in the first step."""
        if self.linear is frozen_linear:
            above = self.depth if self.first is None else self.first
            self.matrices = [
                packed_matrix(weight, transposed)
                for number, block in enumerate(self.blocks)
                for weight in frozen_matrices(block, self._at_token(number))
                for transposed in ((False, True) if number > above else (False,))
            ]

    def compile_blocks(self, **options) -> None:
        """Run each adapted block above the first through ``torch.compile``, for recomputation around each of them."""
        self._adapted_block = torch.compile(self._adapted_block, **options)  # type: ignore[method-assign]

    def enter(self, x: Tensor, layout: Layout) -> Entry:
        """The tower's frozen beginning on embedded tokens in ``layout``; call it under ``torch.no_grad()``.

        A tower without adapters goes through whole.
        """
        for number in range(self.depth if self.first is None else self.first):
            x, _ = self._frozen_block(number, x, layout)
        if self.first is None:
            return Entry(x.new_empty(len(x), 0), x.to(self.stream))
        x = x.to(self.stream)
        output, adapter_input = self._frozen_block(self.first, x, layout)
        return Entry(adapter_input, output)

    def adapted(self, entry: Entry, layout: Layout, reconstruct: bool) -> tuple[Tensor, list[Tensor]]:
        """The last block's output and, with ``reconstruct``, each adapter's loss of each token, in ``layout``."""
        losses: list[Tensor] = []
        x = entry.output
        if self.first is None:
            return x, losses
        x, loss = self._add(self.first, entry.adapter_input, x, layout, reconstruct)
        losses.append(loss)
        for number in range(self.first + 1, self.depth):
            if self.recompute:
                x, loss = checkpoint(
                    self._adapted_block, number, x, layout, reconstruct, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x, loss = self._adapted_block(number, x, layout, reconstruct)
            losses.append(loss)
        return x, [loss for loss in losses if loss.numel()]

    def frozen(self, entry: Entry, layout: Layout, reconstruct: bool = False) -> tuple[Tensor, list[Tensor]]:
        """The same without the adapters' terms; with ``reconstruct`` the losses are those of the frozen tokens.

        The frozen model leaves no graph; the losses have one to the adapters' weights.
        """
        losses: list[Tensor] = []
        x, adapter_input = entry.output, entry.adapter_input
        for number in range(self.depth if self.first is None else self.first, self.depth):
            if number != self.first:
                with torch.no_grad():
                    x, adapter_input = self._frozen_block(number, x, layout)
            branch = adapter_of(self.blocks[number])
            if reconstruct and branch is not None:
                losses.append(adapter_term(branch, adapter_input, None, True)[1])
        return x, losses

    def _frozen_block(self, number: int, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """The block's frozen output, and what an adapter beside it reads."""
        block = self.blocks[number]
        u = normed(getattr(block, self.kind.norm), x, self.dtype)
        adapter_input = x.to(self.dtype) if self.pre_ln else u
        mask = None if self.mask is None else self.mask[: layout.length(x), : layout.length(x)]
        if self._at_token(number):
            return frozen_part_at(block, x, u, layout, mask, self.linear), adapter_input
        return frozen_part(block, x, u, layout, mask, self.causal, self.linear), adapter_input

    def _adapted_block(self, number: int, x: Tensor, layout: Layout, reconstruct: bool) -> tuple[Tensor, Tensor]:
        output, adapter_input = self._frozen_block(number, x, layout)
        if adapter_of(self.blocks[number]) is None:
            return output, x.new_empty(0)
        return self._add(number, adapter_input, output, layout, reconstruct)

    def _add(
        self, number: int, adapter_input: Tensor, output: Tensor, layout: Layout, reconstruct: bool
    ) -> tuple[Tensor, Tensor]:
        """The block's output with its adapter's term, and the reconstruction's losses, which all tokens have."""
        branch = adapter_of(self.blocks[number])
        assert branch is not None  # the caller has looked
        if not self._at_token(number):
            return adapter_term(branch, adapter_input, output, reconstruct)
        out, none = adapter_term(branch, layout.take(adapter_input), output, False)
        return out, adapter_term(branch, adapter_input, None, True)[1] if reconstruct else none

    def _at_token(self, number: int) -> bool:
        return self.by_token and number == self.depth - 1


class ImageEncoder(Encoder):
    """The image tower, from pixels to features."""

    def __init__(self, model: AdaptedCLIP, **settings):
        super().__init__(model, "vision", **settings)
        self.layout = Layout(pooled_token(self.clip, "vision") if self.by_token else None)

    def begin(self, images: Tensor) -> Entry:
        """``enter`` on images [n, 3, size, size] of any floating dtype."""
        return self.enter(self.clip.visual._embeds(images.to(self.dtype)), self.layout)

    def finish(self, x: Tensor) -> Tensor:
        """Features [n, embed], not normalised, of the last block's output."""
        visual = self.clip.visual
        if self.by_token:
            pooled = normed(visual.ln_post, x.squeeze(1), self.dtype)
        else:
            pooled, _ = visual._pool(x.to(self.dtype))
        return pooled if visual.proj is None else pooled @ visual.proj

    def features(self, images: Tensor) -> Tensor:
        """Adapted features [n, embed] of images, for evaluation."""
        with torch.no_grad():
            entry = self.begin(images)
        return self.finish(self.adapted(entry, self.layout, False)[0])


class TextEncoder(Encoder):
    """The text tower, from the tokens of prompts to features."""

    def __init__(self, model: AdaptedCLIP, **settings):
        super().__init__(model, "text", **settings)

    def layout(self, tokens: Tensor, shared: int = 0) -> Layout:
        """That of prompts [classes, length] (int64) of which all begin with the same ``shared`` tokens."""
        token = None
        if self.by_token:
            place = pooled_token(self.clip, "text")
            token = end_of_text(self.clip, tokens) if place is None else place % tokens.shape[1]
            token = token - shared
        return Layout(token, shared, len(tokens) if shared else 0)

    def begin(self, tokens: Tensor, layout: Layout) -> Entry:
        """``enter`` on tokens [classes, length] (int64)."""
        return self.enter(layout.pack(embed_prompts(self.clip, tokens)), layout)

    def finish(self, x: Tensor, tokens: Tensor, layout: Layout) -> Tensor:
        """Features [classes, embed], not normalised, of the last block's output."""
        if self.by_token:
            return project_text(self.clip, normed(self.clip.ln_final, x.squeeze(1), self.dtype))
        x = normed(self.clip.ln_final, layout.own(x), self.dtype)
        return project_text(self.clip, pool_text(self.clip, x, tokens[:, layout.shared :]))

    def features(self, tokens: Tensor) -> Tensor:
        """Adapted features [classes, embed] of tokens [classes, length], for evaluation."""
        layout = self.layout(tokens)
        with torch.no_grad():
            entry = self.begin(tokens, layout)
        return self.finish(self.adapted(entry, layout, False)[0], tokens, layout)


class Encoders(NamedTuple):
    """Both towers of one model."""

    image: ImageEncoder
    text: TextEncoder

    @classmethod
    def of(cls, model: AdaptedCLIP, **settings) -> Encoders | None:
        """Encoders of ``model``, or None where its blocks are not known; settings as in ``Encoder``."""
        if blocks_obstacle(model.clip) is not None:
            return None
        return cls(ImageEncoder(model, **settings), TextEncoder(model, **settings))
