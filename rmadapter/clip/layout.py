"""How the tokens of several sequences lie in one tensor, and at which of them a tower is pooled."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Token = Tensor | int | None


class Layout(NamedTuple):
    """The tokens of ``groups`` times ``rows`` sequences; those of a group may begin alike.

    In a causal tower a token depends on those before it alone. What all prompts begin with ("a photo of a") is then the
    same for all of them, and stands once a group: [groups, shared + rows * own, D], first the shared tokens, then each
    row's own. With ``shared`` 0 the tensor is [groups * rows, tokens, D]. Several groups are the same prompts once for
    each image, where what is learned at their beginning depends on the image.

    Attributes:
        token: where the tower is pooled, counted from the first own token: int64 [rows], one number for all rows, or
            None where it is not pooled at one token.
        shared: tokens that all rows of a group begin with.
        rows: number of rows of a group; not needed with ``shared`` 0.
        groups: number of groups.
        slots: int64 [rows, learned], at which tokens of each row learned ones stand, from the sequence's first; None
            where there are none.
        led: how many of them, from the first, are among the shared tokens.
        also: how many tokens behind the one at which the tower is pooled are taken with it.
        seen: additive mask [rows, 1 or heads, 1 or tokens, tokens] of what each row's tokens look at; None where all
            rows look at what the tower's own mask allows.
    """

    token: Token = None
    shared: int = 0
    rows: int = 0
    groups: int = 1
    slots: Tensor | None = None
    led: int = 0
    also: int = 0
    seen: Tensor | None = None

    def inserted(self, count: int, also: int = 0) -> Layout:
        """The layout with ``count`` tokens more behind each sequence's first, of which ``also`` are taken too."""
        if not count:
            return self
        if self.shared:
            return self._replace(shared=self.shared + count, also=also)
        # The first token stays where it is, and the last one counts from the end.
        token = self.token
        if token is not None and not (isinstance(token, int) and token <= 0):
            token = token + count
        return self._replace(token=token, also=also)

    def pack(self, x: Tensor) -> Tensor:
        """[rows, tokens, D] as this layout has it, in one group."""
        if not self.shared:
            return x
        return torch.cat([x[0, : self.shared], x[:, self.shared :].flatten(0, 1)])[None]

    def repeated(self, x: Tensor) -> Tensor:
        """What ``pack`` gave, once for each group."""
        return x if self.groups == 1 else x.repeat(self.groups, 1, 1)

    def start(self, x: Tensor) -> Tensor:
        """The shared tokens [groups, shared, D]; only with ``shared``."""
        return x[:, : self.shared]

    def own(self, x: Tensor) -> Tensor:
        """The rows' own tokens [groups * rows, own, D]."""
        return x[:, self.shared :].unflatten(1, (self.rows, -1)).flatten(0, 1) if self.shared else x

    def joined(self, start: Tensor, own: Tensor) -> Tensor:
        """The inverse of ``start`` and ``own``."""
        return torch.cat([start, own.unflatten(0, (self.groups, self.rows)).flatten(1, 2)], 1)

    def weights(self, counted: Tensor) -> Tensor:
        """How many of the rows' tokens each of its own stands for, of those ``counted``, bool [rows, tokens of a row].

        fp32, [1, shared + rows * own] with shared tokens, else [rows, tokens].
        """
        found = counted.float()
        if not self.shared:
            return found
        return torch.cat([self.rows * found[:1, : self.shared], found[:, self.shared :].reshape(1, -1)], 1)

    def length(self, x: Tensor) -> int:
        """Tokens of one row, the shared ones counted."""
        return self.shared + (x.shape[1] - self.shared) // self.rows if self.shared else x.shape[1]

    def of_rows(self, x: Tensor) -> Tensor:
        """[groups, ...] for each row: [groups * rows, ...], a row's as its group's."""
        return x.repeat_interleave(self.rows, 0) if self.groups > 1 else x.expand(self.rows, *x.shape[1:])

    def of_groups(self, x: Tensor) -> Tensor:
        """[rows, ...] for each group: [groups * rows, ...]."""
        return x if self.groups == 1 else x.repeat(self.groups, *[1] * (x.dim() - 1))

    def with_learned(self, x: Tensor, values: Tensor, added: Tensor) -> Tensor:
        """Embedded ``x`` with ``values`` at the learned tokens; ``added`` [tokens, D] are the positions' embeddings.

        Args:
            values: [learned, D] of all rows, [rows, learned, D] of each, or with several groups [groups, learned, D].
        """
        assert self.slots is not None  # or there were no values
        values = values.to(x.dtype)
        led = self.led
        if led:
            start = values[..., :led, :] + added[1 : 1 + led].to(x.dtype)
            # Those among the shared tokens stand behind the first one.
            x = torch.cat([x[:, :1], start.expand(x.shape[0], -1, -1), x[:, 1 + led :]], 1)
        if led == self.slots.shape[1]:
            return x
        rows = self.slots.shape[0]  # not its len(), which torch.export takes for a fixed number
        own = values[..., led:, :]
        if own.dim() == 2:
            own = own.expand(self.groups * rows, -1, -1)
        else:
            own = own.repeat_interleave(rows, 0) if self.groups > 1 else own
        slots = self.of_groups(self.slots[:, led:])
        own = own + added[slots].to(x.dtype)
        found = self.own(x).scatter(1, (slots - self.shared)[:, :, None].expand_as(own), own)
        return self.joined(self.start(x), found) if self.shared else found

    def mask(self, mask: Tensor | None, x: Tensor) -> Tensor | None:
        """What the tokens of ``x`` look at: ``seen``, or the additive ``mask`` [tokens, tokens] cut to their number."""
        if self.seen is not None:
            return self.seen
        length = self.length(x)
        return None if mask is None else mask[:length, :length]

    def take(self, x: Tensor) -> Tensor:
        """The token at which each row is pooled, and those behind it: [groups * rows, 1 + also, D]."""
        own = self.own(x)
        if isinstance(self.token, int):
            return own[:, self.token : self.token + 1 + self.also]
        assert self.token is not None  # only towers that are pooled at one token are asked for it
        return own.gather(1, self.of_groups(self.token)[:, None, None].expand(-1, 1, x.shape[-1]))


def shared_start(tokens: Tensor, lengths: Tensor) -> int:
    """How many tokens all rows of ``tokens`` [rows, length] begin with, the last of each row (``lengths``) left out."""
    differs = (tokens != tokens[0]).any(0)
    same = int(differs.int().argmax()) if bool(differs.any()) else tokens.shape[1]
    return min(same, int(lengths.min()) - 1)
