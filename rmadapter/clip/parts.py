"""One frozen transformer block taken apart: the same names for every kind of block, so that one step runs them all.

    u  = norm1(x), or x where there is none
    x' = x + scale1(attention(u))
    block(x) = x' + scale2(mlp(norm2(x')))

``BlockParts`` holds the submodules and weights of a block as they are now. A block of another form has ``whole`` alone,
its own forward pass; what needs more than that is then left out (``clip.obstacles`` says what).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rmadapter.clip.activations import activated
from rmadapter.clip.types import Block

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
NOTHING = nn.Identity()
Matrix = tuple[Tensor, Tensor | None]  # weight [out, in], bias [out]


@dataclass(frozen=True)
class Attention:
    """Self-attention, taken apart.

    Attributes:
        heads: their number.
        qkv: one matrix [3 D, D] of queries, keys and values, or one of each.
        qkv_bias: the bias of one matrix, where it is put together of several parameters; None: it stands beside it.
        out: the projection of what the heads have found.
        q_norm, k_norm: of each head's queries and keys.
        rotate: positions rotated into queries and keys [n, heads, tokens, d].
        fixed: how many tokens, from the first, ``rotate`` leaves as they are.
        inner: norm in front of ``out``.
    """

    heads: int
    qkv: tuple[Matrix, ...]
    out: nn.Linear
    q_norm: nn.Module | None = None
    k_norm: nn.Module | None = None
    rotate: Callable[[Tensor], Tensor] | None = None
    fixed: int = 0
    inner: nn.Module | None = None
    qkv_bias: Callable[[], Tensor] | None = None

    @property
    def projections(self) -> tuple[Matrix, ...]:
        """``qkv`` with the biases that there are now."""
        return self.qkv if self.qkv_bias is None else ((self.qkv[0][0], self.qkv_bias()),)

    @property
    def plain(self) -> bool:
        """Whether there are queries, keys and values and nothing else, so that a query can go around all keys."""
        return len(self.qkv) == 1 and not (self.q_norm or self.k_norm or self.rotate or self.inner)


@dataclass(frozen=True)
class Mlp:
    """Two layers with an activation; with a ``gate``: ``last(norm(act(gate(x)) * first(x)))``."""

    first: nn.Linear
    act: nn.Module
    last: nn.Linear
    norm: nn.Module | None = None
    gate: nn.Linear | None = None

    def __call__(self, x: Tensor, linear: Linear) -> Tensor:
        """Its output for ``x`` [..., D]; ``linear`` multiplies as ``F.linear`` does."""
        if self.gate is None:
            hidden = activated(linear, x, self.first, self.act)
        else:
            hidden = activated(linear, x, self.gate, self.act) * linear(x, self.first.weight, self.first.bias)
        hidden = hidden if self.norm is None else self.norm(hidden)
        return linear(hidden, self.last.weight, self.last.bias)


@dataclass(frozen=True)
class BlockParts:
    """One block.

    Attributes:
        whole: (x [n, tokens, D], additive mask or None) -> the block's output, by its own forward pass without hooks.
        norm1: in front of attention; what an adapter reads is behind it. None: it reads the block's input.
        attention, mlp: None where the block is not taken apart.
        attend: attention that is a function of (u, mask) alone, where its parts are not known but the block's are.
        norm2: in front of the MLP.
        scale1, scale2: what attention's and the MLP's output go through: LayerScale, or a norm.
    """

    whole: Callable[[Tensor, Tensor | None], Tensor]
    norm1: nn.Module | None = None
    norm2: nn.Module | None = None
    attention: Attention | None = None
    attend: Callable[[Tensor, Tensor | None], Tensor] | None = None
    mlp: Mlp | None = None
    scale1: Callable[[Tensor], Tensor] = NOTHING
    scale2: Callable[[Tensor], Tensor] = NOTHING

    @property
    def apart(self) -> bool:
        """Whether attention and MLP are at hand."""
        return self.mlp is not None and (self.attention is not None or self.attend is not None)

    @property
    def plain(self) -> bool:
        """Whether the attention is queries, keys and values and nothing else, behind a norm."""
        return self.mlp is not None and self.attention is not None and self.attention.plain

    def matrices(self, at_token: bool = False) -> Iterator[Tensor]:
        """The weights that ``blocks`` multiplies with by ``linear``, with ``at_token`` those for one token of a row."""
        if self.attention is not None:
            if not (at_token and self.attention.plain):
                yield from (weight for weight, _ in self.attention.qkv)
            yield self.attention.out.weight
        if self.mlp is not None:
            layers = (self.mlp.first, self.mlp.gate, self.mlp.last)
            yield from (layer.weight for layer in layers if layer is not None)


@dataclass(frozen=True)
class Scaled:
    """A LayerScale that is a bare parameter."""

    gamma: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """``gamma * x``."""
        return self.gamma * x


def whole_block(block: Block) -> Callable[[Tensor, Tensor | None], Tensor]:
    """``BlockParts.whole`` of a block that is called with its input and ``attn_mask``."""
    return lambda x, mask: block.forward(x) if mask is None else block.forward(x, attn_mask=mask)


def _in_one_pass(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch normalises 16-bit ``x`` by an fp32 weight without a copy in fp32: on a CPU, and where ``x``
    needs no gradient.

    8 images of 197 tokens of width 768 in bf16, two cores with AMX: 0.6 ms in place of 1.5, rounded alike but for 2 in
    100,000 elements.
    """
    if x.device.type != "cpu" or x.dtype.itemsize != 2 or weight.dtype != torch.float32:
        return False
    return not (torch.is_grad_enabled() and x.requires_grad) and not torch.compiler.is_compiling()


def normed(norm: nn.Module | None, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``norm(x)`` rounded to ``dtype``; a LayerNorm in the dtype of its own weights (fp32 over 16-bit blocks)."""
    if norm is None or isinstance(norm, nn.Identity):  # which is not called: where tokens enter by it, it has a hook
        return x.to(dtype)
    if not isinstance(norm, nn.LayerNorm):
        return norm(x).to(dtype)
    as_it_is = norm.weight is None or (x.dtype == dtype and _in_one_pass(x, norm.weight))
    wide = x if as_it_is else x.to(norm.weight.dtype)
    return F.layer_norm(wide, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(dtype)
