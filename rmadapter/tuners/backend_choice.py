"""Which backend of the operator a model's adapters run on."""

from __future__ import annotations

import contextlib

import torch

from rmadapter.clip.towers import find_towers
from rmadapter.errors import InputError, nearest
from rmadapter.tuners.adapted_clip import AdaptedCLIP
from rmadapter_kernels import AUTO, Explanation, FusedRMAdapter, available_backends, explain

EAGER = "eager"


def choose_backend(model: AdaptedCLIP, fused: bool, backend: str | None) -> tuple[str, str]:
    """Set the adapters' backend; returns its name and a sentence on what was chosen and why.

    ``fused`` without a name leaves each tower to ``auto``; where they differ the names are joined by "+".

    Raises:
        InputError: ``backend`` names one that is not here, or one that does not cover the configured variant or a
            tower's width.
    """
    if not model.config.in_operator:
        if backend not in (None, EAGER):
            raise InputError(f"backend is {backend!r}, which does not cover this variant of the adapter; valid: eager")
        return EAGER, "adapters: plain PyTorch (this variant is outside the fused operator)"
    if not list(model.adapters()):
        if backend not in (None, EAGER):
            raise InputError(f"backend is {backend!r}, but nothing here runs on one; valid: eager")
        return EAGER, "adapters: none beside blocks"
    asked = backend or (AUTO if fused else EAGER)
    dtypes = {name: tower.dtype for name, tower in find_towers(model.clip).items()}
    found: dict[str, Explanation] = {}
    for tower, _, adapter in model.adapters():
        branch = adapter.branch
        assert isinstance(branch, FusedRMAdapter)  # the variant is one that the operator covers
        x = torch.empty(1, branch.d_model, dtype=dtypes[tower], device=branch.w_down.device)
        try:
            found[tower] = _explained(x, branch, asked)
        except ValueError as error:
            # Of an unknown name the error lists all there are.
            valid = nearest(asked, available_backends()) if asked not in available_backends() else _able(x, branch)
            raise InputError(f"adapters of the {tower} tower: {error}{valid}") from error
    model.set_backend(asked)
    if asked == EAGER:
        return EAGER, f"adapters: backend eager ({'--no-fused' if backend is None else 'as asked for'})"
    chosen = sorted({explanation.backend for explanation in found.values()})
    if len(chosen) == 1:
        reason = next(iter(found.values())).reason
        return chosen[0], f"adapters: backend {chosen[0]} ({reason})"
    towers = ", ".join(f"{tower} {explanation}" for tower, explanation in found.items())
    return "+".join(chosen), f"adapters: backends {towers}"


def _explained(x: torch.Tensor, branch: FusedRMAdapter, backend: str) -> Explanation:
    """``explain`` for what goes through ``branch``."""
    hidden = branch.rec_hidden if branch.reconstruct else 0
    return explain(x, bottleneck=branch.bottleneck, rec_hidden=hidden, backend=backend)


def _able(x: torch.Tensor, branch: FusedRMAdapter) -> str:
    """The end of a message: the names that may be asked for with ``branch`` here."""
    names = [AUTO]
    for name in available_backends():
        with contextlib.suppress(ValueError):
            names.append(_explained(x, branch, name).backend)
    return f"; valid: {', '.join(names)}"
