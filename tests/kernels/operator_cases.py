"""What the operator's tests share: inputs of every kind, and the two sides that are compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rmadapter_kernels import rm_adapter
from rmadapter_kernels.reference import reference

WEIGHTS = ("w_down", "b_down", "w_up", "b_up", "w_rec1", "b_rec1", "w_rec2", "b_rec2")


@dataclass
class Case:
    """Arguments of the operator, and gradients for its two results."""

    x: Tensor
    weights: list[Tensor | None]
    residual: Tensor | None
    norm: tuple[Tensor | None, Tensor | None, float] | None
    d_out: Tensor
    d_loss: Tensor
    settings: dict[str, Any] = field(default_factory=dict)

    def to(self, dtype: torch.dtype, weight_dtype: torch.dtype | None = None) -> Case:
        """Detached copies in other dtypes; ``d_loss`` follows the wide dtype."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32

        def cast(tensor: Tensor | None, to: torch.dtype) -> Tensor | None:
            return None if tensor is None else tensor.detach().to(to, copy=True)

        norm = self.norm and (*(cast(t, weight_dtype or dtype) for t in self.norm[:2]), self.norm[2])
        return Case(
            cast(self.x, dtype),
            [cast(w, weight_dtype or dtype) for w in self.weights],
            cast(self.residual, dtype),
            norm,
            cast(self.d_out, dtype),
            cast(self.d_loss, wide),
            self.settings,
        )


def make_case(
    lead: tuple[int, ...] = (2, 3),
    d: int = 12,
    r: int = 5,
    h: int = 7,
    *,
    reconstruct: bool = True,
    residual: bool = True,
    norm: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **settings: Any,
) -> Case:
    """Random inputs of order one; ``settings`` are the operator's keyword arguments."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    weights = [draw(d, r) / d**0.5, draw(r), draw(r, d) / r**0.5, draw(d)]
    rec = [draw(r, h) / r**0.5, draw(h), draw(h, d) / h**0.5, draw(d)]
    return Case(
        x=draw(*lead, d),
        weights=[*weights, *(rec if reconstruct else [None] * 4)],
        residual=draw(*lead, d) if residual else None,
        norm=(1 + draw(d) / 4, draw(d), 1e-5) if norm else None,
        d_out=draw(*lead, d),
        d_loss=draw(*lead),
        settings=settings,
    )


def run(case: Case, implementation=rm_adapter, use: str = "both", frozen: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Results and gradients by name; ``use`` is "out", "loss" or "both", ``frozen`` inputs get no gradient."""
    inputs = {"x": case.x, "residual": case.residual, **dict(zip(WEIGHTS, case.weights, strict=True))}
    leaves = {}
    for name, tensor in inputs.items():
        if tensor is not None:
            # as_strided keeps the layout of a permuted or sliced input.
            leaves[name] = tensor.detach().requires_grad_(name not in frozen)
    call = {name: leaves.get(name) for name in inputs}
    residual = call.pop("residual")
    out, loss = implementation(**call, residual=residual, norm=case.norm, **case.settings)
    found = {"out": out.detach(), "rec_loss": loss.detach()}
    pairs = []
    if use in ("out", "both"):
        pairs.append((out, case.d_out))
    if use in ("loss", "both") and loss.numel():
        pairs.append((loss, case.d_loss.to(loss.dtype)))
    # The plain reference does not require grad where nothing that a result depends on is trained.
    pairs = [(result, gradient) for result, gradient in pairs if result.requires_grad]
    torch.autograd.backward([p[0] for p in pairs], [p[1] for p in pairs])
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            found[f"grad {name}"] = leaf.grad
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    """Equal keys, shapes and, relative to the largest value of each tensor, values."""
    for name in expected.keys() - found.keys():
        assert not expected[name].any(), f"{name} is missing"  # autograd fills in zeros where we leave None
    for name, value in found.items():
        if name not in expected:
            assert not value.any(), f"{name} should not be there"
            continue
        assert value.shape == expected[name].shape, name
        error = (value.double() - expected[name].double()).abs().max() if value.numel() else torch.tensor(0.0)
        size = expected[name].abs().max().clamp_min(1) if value.numel() else 1
        assert error <= tolerance * size, f"{name}: {error:.2e}"


def against_reference(case: Case, tolerance: float = 1e-12, **how: Any) -> None:
    """The operator equals the reference under autograd, in results and in every gradient."""
    assert_same(run(case, **how), run(case, implementation=reference, **how), tolerance)
