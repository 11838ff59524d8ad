"""The adapters of the paper's ablation that the kernel operator does not cover, in plain PyTorch.

``VariantAdapter`` has the interface of ``rmadapter_kernels.FusedRMAdapter`` and three switches more: the number
of reconstruction layers, a down-projection of the reconstruction's own, and MMA's r x r layer between down and
up, which one object shares between a block of the image tower and one of the text tower.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rmadapter_kernels import activation, draw_weight, reconstruction_loss, scale_gradient

Norm = tuple[Tensor | None, Tensor | None, float]


def _weight(rows: int, columns: int) -> nn.Parameter:
    """A weight [in, out] that is still to be drawn."""
    return nn.Parameter(torch.empty(rows, columns))


class SharedLayer(nn.Module):
    """MMA's layer between down- and up-projection: z [..., r] -> activation(z W + b) [..., r]."""

    def __init__(self, bottleneck: int):
        super().__init__()
        self.weight = _weight(bottleneck, bottleneck)
        self.bias = nn.Parameter(torch.zeros(bottleneck))
        draw_weight(self.weight)


class VariantAdapter(nn.Module):
    """An adapter of the ablation; arguments as in ``rmadapter_kernels.FusedRMAdapter``, and

    Args:
        rec_layers: layers of the reconstruction, 1 (r -> D), 2 (r -> h -> D) or 3 (r -> h -> h -> D).
        separate_down: the reconstruction has weights ``w_down_rec`` and ``b_down_rec`` of its own.
        shared: MMA's layer, one object in both towers; None for none.

    ``forward(x, residual=None, norm=None, reconstruct=None) -> (out, rec_loss)``: ``x`` [..., D], ``rec_loss`` [...]
    in fp32, and empty without a reconstruction branch or where it is not wanted (None: in eval mode). Any floating
    dtype; weights are cast to that of ``x``.
    """

    def __init__(
        self,
        d_model: int,
        *,
        bottleneck: int = 32,
        rec_hidden: int | None = None,
        activation: str = "gelu",
        objective: str = "l2",
        scale: float = 1.0,
        reconstruct: bool = True,
        local_reconstruction: bool = True,
        branch_grad_scale: float = 1.0,
        init: str = "kaiming",
        rec_layers: int = 2,
        separate_down: bool = False,
        shared: SharedLayer | None = None,
    ):
        super().__init__()
        self.activation, self.objective = activation, objective
        self.scale, self.branch_grad_scale = scale, branch_grad_scale
        self.local_reconstruction = local_reconstruction
        self.rec_layers = rec_layers if reconstruct else 0
        hidden = bottleneck if rec_hidden is None else rec_hidden
        self.w_down = _weight(d_model, bottleneck)
        self.b_down = nn.Parameter(torch.zeros(bottleneck))
        self.w_up = _weight(bottleneck, d_model)
        self.b_up = nn.Parameter(torch.zeros(d_model))
        self.init = init
        self.shared = shared
        self.separate_down = separate_down and reconstruct
        if self.separate_down:
            self.w_down_rec = _weight(d_model, bottleneck)
            self.b_down_rec = nn.Parameter(torch.zeros(bottleneck))
        widths = [bottleneck, *[hidden] * (self.rec_layers - 1), d_model]
        for number in range(1, self.rec_layers + 1):
            self.register_parameter(f"w_rec{number}", _weight(widths[number - 1], widths[number]))
            self.register_parameter(f"b_rec{number}", nn.Parameter(torch.zeros(widths[number])))
        self.reset_parameters()

    def reset_parameters(self, generator_of: Callable[[str], torch.Generator] | None = None) -> None:
        """Draw the weights anew, as ``FusedRMAdapter.reset_parameters``; a shared layer is left as it is."""
        for name, weight in self.named_parameters(recurse=False):
            if name.startswith("b_") or (name == "w_up" and self.init == "zero_up"):
                nn.init.zeros_(weight)
            else:
                draw_weight(weight, generator_of(name) if generator_of else None)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return x @ weight.to(x.dtype) + bias.to(x.dtype)

    def _base(self, u: Tensor) -> Tensor:
        # The gradient is multiplied on its way into the branch and divided on its way out to u, so that the
        # weights see it scaled and u does not (MMA's convention).
        u = scale_gradient(u, 1.0 / self.branch_grad_scale)
        z = activation(self.activation, self._linear(u, self.w_down, self.b_down))
        if self.shared is not None:
            z = activation(self.activation, self._linear(z, self.shared.weight, self.shared.bias))
        return scale_gradient(self._linear(z, self.w_up, self.b_up), self.branch_grad_scale)

    def _reconstruct(self, u: Tensor) -> Tensor:
        down = (self.w_down_rec, self.b_down_rec) if self.separate_down else (self.w_down, self.b_down)
        rec = activation(self.activation, self._linear(u, *down))
        for number in range(1, self.rec_layers + 1):
            rec = self._linear(rec, getattr(self, f"w_rec{number}"), getattr(self, f"b_rec{number}"))
            if number < self.rec_layers:
                rec = activation(self.activation, rec)
        return rec

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        norm: Norm | None = None,
        *,
        reconstruct: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        u = x
        if norm is not None:
            weight, bias, eps = norm
            u = F.layer_norm(x.float() if x.dtype.itemsize < 4 else x, x.shape[-1:], weight, bias, eps).to(x.dtype)
        term = self.scale * self._base(u)
        out = term.to(x.dtype) if residual is None else (residual + term).to(residual.dtype)
        if not (self.rec_layers and (self.training if reconstruct is None else reconstruct)):
            return out, x.new_empty(0, dtype=torch.float32)
        target = u.detach() if self.local_reconstruction else u
        return out, reconstruction_loss(target, self._reconstruct(target), self.objective)
