"""The two towers split where training begins: what is frozen up to there, and what runs at every step.

A tower's blocks below the first place that something is trained at never change, nor does the frozen part of a block
whose adapter stands beside it. ``enter`` computes both once, without a graph; ``tuned`` and ``frozen`` go on from
there, and share it:

    embed -> enter -> Entry -> tuned  -> finish -> features, reconstruction losses
                            -> frozen -> finish -> features of the untouched model
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rmadapter.clip.attention import longer_mask
from rmadapter.clip.blocks import block_output, block_output_at
from rmadapter.clip.frozen_linear import frozen_linear, inference_linear, packed_matrix, packing_obstacle
from rmadapter.clip.layout import Layout
from rmadapter.clip.low_rank import Update
from rmadapter.clip.obstacles import is_causal, last_block_obstacle
from rmadapter.clip.parts import normed
from rmadapter.clip.tower_kind import Tower
from rmadapter.clip.towers import find_towers
from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter.tuners.branch import adapter_of, adapter_term
from rmadapter.tuners.installed import taken_out
from rmadapter.tuners.sites import TokenEdit
from rmadapter.tuners.tuner import Values


class Entry(NamedTuple):
    """Where a tower's trained part begins.

    Attributes:
        adapter_input: what the first adapter reads, in the compute dtype, its tokens as the ``Layout`` has them; empty
            where the trained part does not begin with an adapter.
        output: the frozen output of that adapter's block, of the same shape, or [rows, 1, D] where the block is the
            last one and the tower is pooled at one token; where something else comes first, the tokens that it meets;
            of a tower that nothing is trained in, its features [rows, embed].
    """

    adapter_input: Tensor
    output: Tensor


# Of an encoder's attributes those that ``find_towers`` gives.
OF_TOWER = ("tower", "blocks", "kind", "root", "parts", "_weights")


class Encoder:
    """One tower of an adapted model, run block by block.

    Args:
        model: the model with its adapters.
        modality: "vision" or "text".
        by_token: compute the last block at the pooled token alone, where the tower allows it.
        stream: dtype of the residual stream from the first adapted block on; None: that of the weights.
        recompute: recompute each adapted block in the backward pass.
        packed: on a CPU, keep the blocks' frozen matrices in the layout that oneDNN multiplies in, too.
        inference: nothing is trained by it, so that products take activations with them (``inference_linear``).

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
        inference: bool = False,
    ):
        self.clip, self.modality, self.recompute = model.clip, modality, recompute
        tower = self._find_tower()
        self.pre_ln = model.config.adapter_input == "pre_ln"
        self.dtype = tower.dtype
        self.stream = stream or self.dtype
        self.device = model.clip.logit_scale.device
        self.packed = packed and packing_obstacle(self.device, self.dtype) is None
        self.linear = F.linear if not self.packed else inference_linear if inference else frozen_linear
        self.matrices: list[Tensor] = []
        self.sites = model.sites(modality)
        self.update, self.installed = model.update, model.installed
        self.inserted = self.sites.inserted(len(self.blocks))
        self.branches = [number for number, block in enumerate(self.blocks) if adapter_of(block) is not None]
        inside = self.sites.first
        self.first: int | None = min([*self.branches, *([] if inside is None else [inside])], default=None)
        self.begins_beside = self.first is not None and self.first != inside
        # Dropout draws for each token's keys and values, which one query alone does not make.
        self.by_token = by_token and not self.sites.random and last_block_obstacle(model.clip, modality) is None
        self.causal = is_causal(self.mask)

    def _find_tower(self) -> Tower:
        tower = self.tower = find_towers(self.clip)[self.modality]
        self.blocks, self.kind, self.root, self.parts = tower.blocks, tower.kind, tower.root, tower.parts
        self._weights = next(self.blocks.parameters())
        return tower

    def __getstate__(self) -> dict[str, Any]:
        # A copy's blocks are the copy's, and what takes them apart holds functions of the original's.
        return {name: value for name, value in self.__dict__.items() if name not in OF_TOWER}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._find_tower()

    @property
    def mask(self) -> Tensor | None:
        """The additive mask of a causal tower, where the model has it now, for the longest sequence."""
        return longer_mask(self.tower.mask, self.inserted)

    @property
    def fits(self) -> bool:
        """Whether the model is still where it was, in the same dtype and the same tensors; else they are made anew."""
        here = (self.clip.logit_scale.device, self.tower.dtype) == (self.device, self.dtype)
        return here and next(self.blocks.parameters()) is self._weights

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def hidden(self) -> int:
        """Width of the widest layer in a block: the MLP's hidden one."""
        return max(p.shape[0] for p in self.blocks[0].parameters() if p.dim() == 2)

    def prepare(self) -> None:
        """Lay out now what products with frozen matrices need, those of the gradient too, and not in the first step."""
        if self.packed:
            above = self.depth if self.first is None else self.first - (not self.begins_beside)
            self.matrices = [
                packed_matrix(weight, transposed)
                for number, parts in enumerate(self.parts)
                for weight in parts.matrices(self._at_token(number))
                for transposed in ((False, True) if number > above else (False,))
            ]

    def compile_blocks(self, **options) -> None:
        """Run each tuned block above the first through ``torch.compile``, for recomputation around each of them."""
        self._tuned_block = torch.compile(self._tuned_block, **options)  # type: ignore[method-assign]

    def enter(self, x: Tensor, layout: Layout) -> Entry:
        """The tower's frozen beginning on embedded tokens in ``layout``; call it under ``torch.no_grad()``.

        A tower that nothing is trained in goes through whole.
        """
        for number in range(self.depth if self.first is None else self.first):
            x, _ = self._frozen_block(number, x, layout)
        x = x.to(self.stream)
        if self.first is None or not self.begins_beside:
            return Entry(x.new_empty(x.shape[0], 0, dtype=self.dtype), x)
        output, adapter_input = self._frozen_block(self.first, x, layout)
        return Entry(adapter_input, output)

    def tuned(
        self, entry: Entry, layout: Layout, reconstruct: bool, values: Values | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The last block's output and, with ``reconstruct``, each adapter's loss of each token, in ``layout``.

        ``values`` are what enters this tower, as ``Tuner.values`` has them, of the classes in ``layout``. Tokens that
        were inserted are left out of the output, and those of them that are read stand behind the others.
        """
        losses: list[Tensor] = []
        x = entry.output
        if self.first is None:
            return x, losses
        start = self.first
        if self.begins_beside:
            x, loss = self._add(self.first, entry.adapter_input, x, layout, reconstruct)
            losses.append(loss)
            start += 1
        else:
            x = layout.repeated(x)
        for number in range(start, self.depth):
            value = None if values is None else values.get(number)
            if self.recompute:
                x, loss = checkpoint(
                    self._tuned_block,
                    number,
                    x,
                    layout,
                    reconstruct,
                    value,
                    use_reentrant=False,
                    preserve_rng_state=self.sites.random,
                )
            else:
                x, loss = self._tuned_block(number, x, layout, reconstruct, value)
            losses.append(loss)
        read = x[:, 1 : 1 + self.sites.read]
        x = taken_out(x, self.inserted)
        return torch.cat([x, read], 1) if self.sites.read else x, [loss for loss in losses if loss.numel()]

    def frozen(self, entry: Entry, layout: Layout, reconstruct: bool = False) -> tuple[Tensor, list[Tensor]]:
        """The same without anything that is trained; with ``reconstruct`` the losses are those of the frozen tokens.

        The frozen model leaves no graph; the losses have one to the adapters' weights.
        """
        losses: list[Tensor] = []
        x, adapter_input = entry.output, entry.adapter_input
        for number in range(self.depth if self.first is None else self.first, self.depth):
            if number != self.first or not self.begins_beside:
                with torch.no_grad():
                    x, adapter_input = self._frozen_block(number, x, layout)
            branch = adapter_of(self.blocks[number])
            if reconstruct and branch is not None:
                losses.append(adapter_term(branch, adapter_input, None, True)[1])
        return x, losses

    def _frozen_block(
        self, number: int, x: Tensor, layout: Layout, update: Update | None = None
    ) -> tuple[Tensor, Tensor]:
        """The block's output, without an adapter's term, and what an adapter beside it reads."""
        parts = self.parts[number]
        u = normed(parts.norm1, x, self.dtype)
        adapter_input = x.to(self.dtype) if self.pre_ln else u
        mask = layout.mask(self.mask, u)
        if self._at_token(number):
            return block_output_at(parts, x, u, layout, mask, self.linear, update), adapter_input
        causal = self.causal and layout.seen is None
        return block_output(parts, x, u, layout, mask, causal, self.linear, update), adapter_input

    def _tuned_block(
        self, number: int, x: Tensor, layout: Layout, reconstruct: bool, value: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if value is not None:
            edit = self.sites.before(number)
            assert edit is not None  # values are those of the sites
            x = self._edited(edit, x, layout, value)
        layout = layout.inserted(self.sites.inserted(number + 1), self.sites.read)
        update = self.update(self.modality, number) if number in self.sites.updates else None
        output, adapter_input = self._frozen_block(number, x, layout, update)
        if adapter_of(self.blocks[number]) is None:
            return output, x.new_empty(0)
        return self._add(number, adapter_input, output, layout, reconstruct)

    def _edited(self, edit: TokenEdit, x: Tensor, layout: Layout, value: Tensor) -> Tensor:
        """``x`` with learned tokens before a block; ``layout`` is that of the tower's input."""
        raise NotImplementedError

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
