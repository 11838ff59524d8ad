"""One block's adapter as a child module, with the switches that the block's forward hook reads.

The hook is a function of this module that reads the block it is called with, so a deep copy's hook finds the
copy's adapter, a pickle holds no closure, and the base model's state-dict keys stay as they are.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from rmadapter.clip.tower_kind import CHILD, at_path
from rmadapter.clip.types import Block
from rmadapter.tuners.variants import VariantAdapter
from rmadapter_kernels import FusedRMAdapter


class _GraphToken:
    """Something to be alive: held by a hook of the autograd node of an adapter's output."""


class BlockAdapter(nn.Module):
    """One block's adapter with the switches that its hook reads.

    Args:
        branch: the adapter proper, ``FusedRMAdapter`` or ``VariantAdapter``.
        norm_name: dotted path in the block of the norm that the adapter reads through, None for the block's raw input.
        rec_stream: "adapted" or "frozen", the pass in which the reconstruction is computed.
    """

    def __init__(self, branch: FusedRMAdapter | VariantAdapter, norm_name: str | None, rec_stream: str):
        super().__init__()
        self.branch: FusedRMAdapter | VariantAdapter = branch
        self.norm_name = norm_name
        self.rec_stream = rec_stream
        self.active = True
        self.frozen_pass = False
        self.reconstructs = True
        self.slot_open = False
        self.rec_loss: Tensor | None = None
        self._tokens: weakref.WeakSet[_GraphToken] = weakref.WeakSet()
        self.train(self.training)

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts without a graph: losses in slots are not leaves and cannot be copied.
        return {**self.__dict__, "rec_loss": None, "_tokens": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._tokens = weakref.WeakSet()

    def train(self, mode: bool = True) -> BlockAdapter:
        """Training mode; the branch computes its reconstruction only where the adapted pass needs it."""
        super().train(mode)
        self.branch.train(mode and self.reconstructs and self.rec_stream == "adapted")
        return self

    def after_block(self, block: Block, x: Tensor, output: Tensor) -> Tensor:
        """The block's output with the adapter's term; ``x`` and ``output`` are [batch, tokens, D]."""
        module = at_path(block, self.norm_name) if self.norm_name else None
        norm = None
        if isinstance(module, nn.LayerNorm):
            norm = (module.weight, module.bias, module.eps)  # the operator computes it itself
        elif module is not None:
            x = module(x)
        if self.frozen_pass:
            if self.training and self.reconstructs and self.rec_stream == "frozen":
                self.branch.train()
                self._fill_slot(self.branch(x.detach(), None, norm)[1])
                self.branch.eval()
            return output
        if not self.active:
            return output
        out, rec_loss = self.branch(x, output, norm)
        if self.branch.training:
            self._fill_slot(rec_loss)
        if out.requires_grad and not torch.compiler.is_compiling():
            self._mark_graph(out)
        return out

    def _fill_slot(self, rec_loss: Tensor) -> None:
        # Recomputation under checkpointing comes here a second time, when the slot is closed: its loss is
        # not part of the step's sum and must not be kept.
        if self.slot_open and rec_loss.numel():
            self.rec_loss = rec_loss

    def _mark_graph(self, out: Tensor) -> None:
        # The hook owns the token, so the token dies with the graph; it is struck off when backward gets here.
        token, tokens = _GraphToken(), self._tokens
        tokens.add(token)
        assert out.grad_fn is not None  # it requires grad, and is no leaf
        out.grad_fn.register_prehook(lambda gradients: tokens.discard(token))

    @property
    def graph_alive(self) -> bool:
        """Whether a forward pass through this adapter still waits for its backward pass."""
        return len(self._tokens) > 0


def adapter_hook(block: Block, args: tuple[Any, ...], output: Any) -> Any:
    """Forward hook of a block that has an adapter: its output with the adapter's term.

    Of a block that returns several things (transformers' do) the first is its output.
    """
    adapter = getattr(block, CHILD)
    if isinstance(output, tuple):
        return (adapter.after_block(block, args[0], output[0]), *output[1:])
    return adapter.after_block(block, args[0], output)
