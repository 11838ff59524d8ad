"""The image tower from pixels to features, split where training begins as ``encoder`` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rmadapter.clip.layout import Layout
from rmadapter.clip.parts import normed
from rmadapter.clip.pieces import in_cache
from rmadapter.clip.tower_kind import at_path
from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter.tuners.encoder import Encoder, Entry
from rmadapter.tuners.installed import edited
from rmadapter.tuners.sites import TokenEdit
from rmadapter.tuners.tuner import Values


class BothFeatures(NamedTuple):
    """What the tuned and the frozen image tower make of the same images.

    Attributes:
        tuned: features [n, embed], not normalised; see ``Features.image``.
        frozen: those of the untouched model, [n, embed].
        errors: each adapter's reconstruction loss of each patch, [n, rows, columns], in the order of the blocks; empty
            where none was wanted, or the adapters have no reconstruction branch.
    """

    tuned: Tensor
    frozen: Tensor
    errors: tuple[Tensor, ...]


class ImageEncoder(Encoder):
    """The image tower, from pixels to features."""

    def __init__(self, model: AdaptedCLIP, **settings):
        super().__init__(model, "vision", **settings)
        place = self.tower.place()
        self.layout = Layout(place if self.by_token and isinstance(place, int) else None)
        self.tokens = self.kind.size(self.root) + self.sites.added

    def at_once(self, count: int) -> int:
        """How many of ``count`` images go through the tower at a time."""
        return in_cache(count, self.tokens * self.hidden * self.dtype.itemsize, self.device)

    def begin(self, images: Tensor) -> Entry:
        """``enter`` on images [n, 3, size, size] of any floating dtype."""
        with self.installed.bypassed():  # open_clip's modules run the hooks of the plain step
            embedded = self.kind.embed(self.root, images.to(self.dtype))
        entry = self.enter(embedded, self.layout)
        return entry if self.first is not None else Entry(entry.adapter_input, self._features(entry.output))

    def finish(self, x: Tensor, read: int = 0) -> Tensor:
        """Features [n, embed], not normalised, of what ``tuned`` or ``frozen`` gives.

        Of ``tuned`` the last ``read`` tokens, ``Sites.read``, are read beside: [n, embed + D] with their mean behind.
        """
        if self.first is None:
            return x
        if not read:
            return self._features(x)
        tokens = normed(at_path(self.root, self.kind.leave), x[:, -read:], self.dtype)
        return torch.cat([self._features(x[:, :-read]), tokens.mean(1)], -1)

    def _features(self, x: Tensor) -> Tensor:
        if self.by_token:
            assert self.kind.finish_at is not None  # ``last_block_obstacle`` has looked
            return self.kind.finish_at(self.root, x.squeeze(1), self.dtype)
        return self.kind.finish(self.root, x, None, self.dtype)

    def _edited(self, edit: TokenEdit, x: Tensor, layout: Layout, value: Tensor) -> Tensor:
        if edit.embedded:  # the norm in front of the blocks, which the other tokens have behind them
            value = normed(at_path(self.root, self.kind.enter), value.to(self.dtype), self.dtype)
        return edited(edit, x, value)

    def features(self, images: Tensor, values: Values | None = None) -> Tensor:
        """Tuned features [n, embed] of images, for evaluation."""
        return torch.cat([self._features_of(piece, values) for piece in self._pieces(images)])

    @torch.no_grad()
    def frozen_features(self, images: Tensor) -> Tensor:
        """The untouched model's features [n, embed] of images, whatever adapters stand beside its blocks."""
        return torch.cat(
            [self.finish(self.frozen(self.begin(piece), self.layout)[0]) for piece in self._pieces(images)]
        )

    def _pieces(self, images: Tensor) -> Sequence[Tensor]:
        # Of a graph the number of images is open.
        return [images] if torch.compiler.is_compiling() else images.split(self.at_once(len(images)))

    def _features_of(self, images: Tensor, values: Values | None) -> Tensor:
        with torch.no_grad():
            entry = self.begin(images)
        return self.finish(self.tuned(entry, self.layout, False, values)[0], self.sites.read)

    @torch.no_grad()
    def both(self, images: Tensor, values: Values | None, reconstruct: str | None) -> BothFeatures:
        """The tuned and the frozen model's features of images, for evaluation; their common beginning is run once.

        ``reconstruct`` names the pass whose patches the adapters rebuild, "adapted" or "frozen"; None: neither.
        """
        tuned, frozen, errors = zip(
            *(self._both(piece, values, reconstruct) for piece in self._pieces(images)), strict=True
        )
        each = zip(*errors, strict=True)  # by adapter
        return BothFeatures(torch.cat(tuned), torch.cat(frozen), tuple(torch.cat(pieces) for pieces in each))

    def _both(self, images: Tensor, values: Values | None, reconstruct: str | None) -> BothFeatures:
        entry = self.begin(images)
        x, adapted_losses = self.tuned(entry, self.layout, reconstruct == "adapted", values)
        frozen, frozen_losses = self.frozen(entry, self.layout, reconstruct == "frozen")
        inserted = [self.sites.inserted(number + 1) for number in self.branches]
        errors = [self._patches(*found) for found in zip(adapted_losses, inserted, strict=False)]  # none, or all
        errors += [self._patches(loss, 0) for loss in frozen_losses]
        return BothFeatures(self.finish(x, self.sites.read), self.finish(frozen), tuple(errors))

    def _patches(self, loss: Tensor, inserted: int) -> Tensor:
        """Of a ``loss`` of each token those of the patches, [n, rows, columns]; ``inserted`` tokens are before them."""
        grid = self.kind.grid(self.root)
        assert grid is not None  # or nobody asks for them
        first = self.kind.size(self.root) - grid[0] * grid[1] + inserted
        return loss[:, first : first + grid[0] * grid[1]].unflatten(1, grid)
