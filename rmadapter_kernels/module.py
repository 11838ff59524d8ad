"""``FusedRMAdapter``: the operator with its parameters."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rmadapter_kernels.backends import AUTO
from rmadapter_kernels.checks import DTYPE_NAMES, DTYPES, check_settings
from rmadapter_kernels.functional import rm_adapter
from rmadapter_kernels.reference import Norm

INITS = ("kaiming", "zero_up")


def draw_weight(weight: Tensor, generator: torch.Generator | None = None) -> None:
    """Fill ``weight`` [in, out] in place with normal values, deviation sqrt(2 / out) (He et al. 2015, by outputs).

    They are drawn in fp32 on the CPU, from ``generator`` or torch's global one, so that device, dtype and memory layout
    of ``weight`` change nothing but their rounding. A DTensor (what FSDP2 makes of a parameter) gets what the first
    process of its mesh draws.
    """
    drawn = torch.empty(weight.shape[::-1], dtype=torch.float32, device="cpu")  # [out, in], as nn.Linear has it
    nn.init.kaiming_normal_(drawn, mode="fan_out", nonlinearity="relu", generator=generator)
    with torch.no_grad():
        weight.copy_(_spread_like(weight, drawn.t()))


def _spread_like(weight: Tensor, values: Tensor) -> Tensor:
    """``values`` as what can be copied to ``weight``: spread over its mesh where it is a DTensor."""
    distributed = sys.modules.get("torch.distributed.tensor")  # imported already where there is a DTensor
    if distributed is None or not isinstance(weight, distributed.DTensor):
        return values
    return distributed.distribute_tensor(values, weight.device_mesh, weight.placements)


class FusedRMAdapter(nn.Module):
    """A dual-branch adapter for tokens of width ``d_model``; equations in ``rm_adapter``.

    Args:
        d_model: width D of the tokens.
        bottleneck: width r of the shared down-projection.
        rec_hidden: hidden width h of the reconstruction branch; default: the bottleneck.
        activation: gelu, relu, quick_gelu or silu.
        objective: l2, l1 or cosine.
        scale: factor on the adaptation branch.
        reconstruct: whether there is a reconstruction branch.
        local_reconstruction: keep the reconstruction's gradient away from the input.
        branch_grad_scale: factor on the gradient that the adaptation branch sends to the weights.
        init: kaiming (He et al. 2015, by each layer's outputs, biases 0), or zero_up (also the up-projection 0, so
            that the untrained adapter adds nothing).
        backend: auto or one of ``available_backends()``; may be changed later.
        device: of the parameters.
        dtype: of the parameters.

    Parameters ``w_down`` [D, r], ``b_down`` [r], ``w_up`` [r, D], ``b_up`` [D], and with ``reconstruct`` ``w_rec1``
    [r, h], ``b_rec1`` [h], ``w_rec2`` [h, D], ``b_rec2`` [D].

    Raises:
        TypeError, ValueError: a width below 1, an unknown name, a setting of another type (a tensor as ``scale``); the
            message says which and what is valid.
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
        backend: str = AUTO,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        rec_hidden = bottleneck if rec_hidden is None else rec_hidden
        for name, value in (("d_model", d_model), ("bottleneck", bottleneck), ("rec_hidden", rec_hidden)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; valid: a whole number >= 1")
        check_settings(scale, branch_grad_scale, activation, objective, local_reconstruction)
        if init not in INITS:
            raise ValueError(f"init is {init!r}; valid: {', '.join(INITS)}")
        if dtype not in (None, *DTYPES):
            raise TypeError(f"dtype is {dtype}; valid: {DTYPE_NAMES}")
        self.d_model, self.bottleneck, self.rec_hidden = d_model, bottleneck, rec_hidden
        self.activation, self.objective, self.scale = activation, objective, scale
        self.reconstruct, self.local_reconstruction = reconstruct, local_reconstruction
        self.branch_grad_scale, self.init, self.backend = branch_grad_scale, init, backend

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.w_down, self.b_down = parameter(d_model, bottleneck), parameter(bottleneck)
        self.w_up, self.b_up = parameter(bottleneck, d_model), parameter(d_model)
        for name, shape in (
            ("w_rec1", (bottleneck, rec_hidden)),
            ("b_rec1", (rec_hidden,)),
            ("w_rec2", (rec_hidden, d_model)),
            ("b_rec2", (d_model,)),
        ):
            self.register_parameter(name, parameter(*shape) if reconstruct else None)
        self.reset_parameters()

    def reset_parameters(self, generator_of: Callable[[str], torch.Generator] | None = None) -> None:
        """Draw the weights anew, on the CPU whatever their device.

        Args:
            generator_of: name of a parameter -> the CPU generator that it is drawn from; None: torch's global one.
        """
        for name, weight in self.named_parameters():
            if name.startswith("b_") or (name == "w_up" and self.init == "zero_up"):
                nn.init.zeros_(weight)
            else:
                draw_weight(weight, generator_of(name) if generator_of else None)

    def forward(self, x: Tensor, residual: Tensor | None = None, norm: Norm | None = None) -> tuple[Tensor, Tensor]:
        """``out`` [..., D] and ``rec_loss`` [...] of tokens ``x`` [..., D]; see ``rm_adapter``.

        The reconstruction is computed in training mode alone; in eval mode ``rec_loss`` is empty.
        """
        rec = (self.w_rec1, self.b_rec1, self.w_rec2, self.b_rec2) if self.training else (None,) * 4
        return rm_adapter(
            x,
            self.w_down,
            self.b_down,
            self.w_up,
            self.b_up,
            *rec,
            residual=residual,
            norm=norm,
            scale=self.scale,
            activation=self.activation,
            objective=self.objective,
            local_reconstruction=self.local_reconstruction,
            branch_grad_scale=self.branch_grad_scale,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        hidden = f", rec_hidden={self.rec_hidden}, objective={self.objective!r}" if self.reconstruct else ""
        return (
            f"{self.d_model}, bottleneck={self.bottleneck}{hidden}, activation={self.activation!r}, "
            f"scale={self.scale}, branch_grad_scale={self.branch_grad_scale}, reconstruct={self.reconstruct}, "
            f"backend={self.backend!r}"
        )
