"""Low-rank updates of frozen matrices: W + scale b a (Hu et al., ICLR 2022), as the blocks of a tower take them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class LowRank(NamedTuple):
    """``scale * b a`` [out, in], added to a frozen matrix.

    Attributes:
        a: [rank, in]; b: [out, rank], in fp32.
        scale: factor on their product.
        dropout: share of the input's values that are left out, each matrix drawing for itself; 0 outside of training.
    """

    a: Tensor
    b: Tensor
    scale: float
    dropout: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """What is added to the frozen product of ``x`` [..., in]: [..., out] in its dtype."""
        x = F.dropout(x, self.dropout) if self.dropout else x
        return self.scale * ((x @ self.a.to(x.dtype).mT) @ self.b.to(x.dtype).mT)

    def added_to(self, weight: Tensor) -> Tensor:
        """``weight`` [out, in] with the update, in its dtype; exact without dropout alone."""
        return weight + (self.scale * self.b @ self.a).to(weight.dtype)


class Update(NamedTuple):
    """The updates of one block's attention: of queries, keys, values and the output projection; None for none."""

    q: LowRank | None = None
    k: LowRank | None = None
    v: LowRank | None = None
    out: LowRank | None = None


def added(update: LowRank | None, x: Tensor, product: Tensor) -> Tensor:
    """The frozen ``product`` of ``x`` with what ``update`` adds to it."""
    return product if update is None else product + update(x)
