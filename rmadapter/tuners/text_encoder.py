"""The text tower from tokens to features, split where training begins as ``encoder`` says."""

from __future__ import annotations

import torch
from torch import Tensor

from rmadapter.clip.layout import Layout
from rmadapter.clip.prompts import Prompts
from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter.tuners.encoder import Encoder, Entry
from rmadapter.tuners.installed import edited
from rmadapter.tuners.sites import TokenEdit
from rmadapter.tuners.tuner import Values


class TextEncoder(Encoder):
    """The text tower, from the tokens of prompts to features."""

    def __init__(self, model: AdaptedCLIP, **settings):
        super().__init__(model, "text", **settings)

    def layout(self, prompts: Prompts, shared: int = 0) -> Layout:
        """That of ``prompts``, all of which begin with the same ``shared`` tokens."""
        token, tokens, slots = None, prompts.tokens, prompts.slots
        if self.by_token:
            place = self.tower.place(tokens)
            assert isinstance(place, (Tensor, int))  # ``by_token`` has looked
            token = place - shared
        led = 0 if slots is None or not shared else int((slots < shared).all(0).sum())
        return Layout(token, shared, len(tokens) if shared else 0, slots=slots, led=led, seen=self._seen(tokens))

    def _seen(self, tokens: Tensor) -> Tensor | None:
        """``Layout.seen``: made once for some prompts, not in every block."""
        keys = self.kind.keys(self.root, tokens)
        if keys is None:
            return None
        unseen = torch.zeros(keys.shape, dtype=self.dtype, device=keys.device).masked_fill(~keys, float("-inf"))
        mask, length = self.mask, keys.shape[1]
        bias = self.kind.bias(self.root, length)
        found = unseen[:, None, None, :]
        for more in (None if mask is None else mask[:length, :length], bias):
            found = found if more is None else found + more.to(self.dtype)
        return found

    def begin(self, tokens: Tensor, layout: Layout) -> Entry:
        """``enter`` on tokens [classes, length] (int64)."""
        with self.installed.bypassed():
            embedded = self.kind.embed(self.root, tokens)
        entry = self.enter(layout.pack(embedded), layout)
        if self.first is not None:
            return entry
        return Entry(entry.adapter_input, self._features(entry.output, tokens, layout))

    def finish(self, x: Tensor, tokens: Tensor, layout: Layout) -> Tensor:
        """Features [groups * classes, embed], not normalised, of what ``tuned`` or ``frozen`` gives."""
        return x if self.first is None else self._features(x, tokens, layout)

    def _features(self, x: Tensor, tokens: Tensor, layout: Layout) -> Tensor:
        if self.by_token:
            assert self.kind.finish_at is not None  # ``last_block_obstacle`` has looked
            return self.kind.finish_at(self.root, x.squeeze(1), self.dtype)
        own = layout.of_groups(tokens[:, layout.shared :])
        return self.kind.finish(self.root, layout.own(x), own, self.dtype)

    def _edited(self, edit: TokenEdit, x: Tensor, layout: Layout, value: Tensor) -> Tensor:
        if edit.embedded:
            return layout.with_learned(x, value, self.root.positional_embedding)
        return edited(edit, x, value)  # behind the first token, which is the first of the shared ones too

    def features(self, prompts: Prompts, values: Values | None = None, groups: int = 1) -> Tensor:
        """Tuned features [groups * classes, embed] of prompts, for evaluation."""
        layout = self.layout(prompts)._replace(groups=groups)
        with torch.no_grad():
            entry = self.begin(prompts.tokens, layout)
        return self.finish(self.tuned(entry, layout, False, values)[0], prompts.tokens, layout)
