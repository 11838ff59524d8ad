"""How the tokens of several sequences lie in one tensor, and at which of them a tower is pooled."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Token = Tensor | int | None


class Layout(NamedTuple):
    """The tokens of ``rows`` sequences that may begin alike.

    In a causal tower a token depends on those before it alone. What all prompts begin with ("a photo of a") is then the
    same for all of them, and stands once: [1, shared + rows * own, D], first the shared tokens, then each row's own.
    With ``shared`` 0 the tensor is [rows, tokens, D].

    Attributes:
        token: where the tower is pooled, counted from the first own token: int64 [rows], one number for all rows, or
            None where it is not pooled at one token.
        shared: tokens that all rows begin with.
        rows: number of rows; not needed with ``shared`` 0.
    """

    token: Token = None
    shared: int = 0
    rows: int = 0

    def pack(self, x: Tensor) -> Tensor:
        """[rows, tokens, D] as this layout has it."""
        if not self.shared:
            return x
        return torch.cat([x[0, : self.shared], x[:, self.shared :].flatten(0, 1)])[None]

    def start(self, x: Tensor) -> Tensor:
        """The shared tokens [1, shared, D]; only with ``shared``."""
        return x[:, : self.shared]

    def own(self, x: Tensor) -> Tensor:
        """The rows' own tokens [rows, own, D]."""
        return x[0, self.shared :].unflatten(0, (self.rows, -1)) if self.shared else x

    def length(self, x: Tensor) -> int:
        """Tokens of one row, the shared ones counted."""
        return self.shared + (x.shape[1] - self.shared) // self.rows if self.shared else x.shape[1]

    def take(self, x: Tensor) -> Tensor:
        """The token at which each row is pooled: [rows, 1, D]."""
        own = self.own(x)
        if isinstance(self.token, int):
            return own[:, self.token : self.token + 1]
        assert self.token is not None  # only towers that are pooled at one token are asked for it
        return own.gather(1, self.token[:, None, None].expand(-1, 1, x.shape[-1]))


def shared_start(tokens: Tensor, lengths: Tensor) -> int:
    """How many tokens all rows of ``tokens`` [rows, length] begin with, the last of each row (``lengths``) left out."""
    differs = (tokens != tokens[0]).any(0)
    same = int(differs.int().argmax()) if bool(differs.any()) else tokens.shape[1]
    return min(same, int(lengths.min()) - 1)
