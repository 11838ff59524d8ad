"""A block's adapter as a function: values in, values out, no hooks and no switches."""

from __future__ import annotations

from torch import Tensor, nn

from rmadapter.clip.tower_kind import CHILD
from rmadapter.clip.types import Block
from rmadapter_kernels import FusedRMAdapter, rm_adapter


def adapter_of(block: Block) -> nn.Module | None:
    """The adapter proper of ``block``, or None."""
    found = getattr(block, CHILD, None)
    return None if found is None else found.branch


def adapter_term(branch: nn.Module, x: Tensor, residual: Tensor | None, reconstruct: bool) -> tuple[Tensor, Tensor]:
    """``residual`` plus the adapter's term, and the reconstruction's loss of each token (empty if not wanted).

    What is computed is an argument and no flag of the module, so that recomputation cannot meet another state.
    """
    if not isinstance(branch, FusedRMAdapter):
        return branch(x, residual, reconstruct=reconstruct)
    rec = (branch.w_rec1, branch.b_rec1, branch.w_rec2, branch.b_rec2) if reconstruct else (None,) * 4
    return rm_adapter(
        x,
        branch.w_down,
        branch.b_down,
        branch.w_up,
        branch.b_up,
        *rec,
        residual=residual,
        scale=branch.scale,
        activation=branch.activation,
        objective=branch.objective,
        local_reconstruction=branch.local_reconstruction,
        branch_grad_scale=branch.branch_grad_scale,
        backend=branch.backend,
    )
