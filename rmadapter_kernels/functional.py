"""``rm_adapter``: checks, autocast, choice of backend, autograd."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rmadapter_kernels.backends import AUTO, Call, choose, dtype_of
from rmadapter_kernels.checks import check_settings, check_tensors
from rmadapter_kernels.ops import IN_PLACE, OPERATORS, PREPARE
from rmadapter_kernels.overlap import refuse_overlap
from rmadapter_kernels.reference import Norm
from rmadapter_kernels.triton.availability import prepare_for


class _Gradients(torch.autograd.Function):
    """The backward operator where a graph of it is asked for (``create_graph=True``): an error where that is followed.

    torch's ``once_differentiable`` marks its results only where what comes in requires grad. With x and the weights as
    inputs, no way to a second derivative is lost in silence.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(backend: str, *arguments: Any) -> tuple[Tensor, ...]:
        return OPERATORS[backend][1](*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError("rm_adapter is differentiable once; valid: reference() for second derivatives")


class _RMAdapter(torch.autograd.Function):
    """The two operators of a backend under autograd; saves x and the weights alone, and what was prepared of them.

    Arguments: backend, x, residual, norm weight, norm bias, norm eps, the eight weights, the five settings, the
    prepared weights or None.
    """

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        prepared = () if inputs[19] is None else inputs[19:]
        return OPERATORS[inputs[0]][0](*inputs[1:19], *prepared)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[1], inputs[3], inputs[4], *inputs[6:14], inputs[19])
        ctx.backend, ctx.norm_eps, ctx.settings = inputs[0], inputs[5], inputs[14:19]
        ctx.set_materialize_grads(False)
        if inputs[10] is None:
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, *weights, prepared = ctx.saved_tensors
        need_x, need_residual = ctx.needs_input_grad[1:3]
        needs = [need_x, *ctx.needs_input_grad[6:14]]
        gradients: list[Tensor | None] = [None] * 9
        if any(needs) and (d_out is not None or d_loss is not None):
            arguments = (
                x, d_out, d_loss, norm_weight, norm_bias, ctx.norm_eps, *weights, *ctx.settings, needs,
                *(() if prepared is None else (prepared,)),
            )  # fmt: skip
            if torch.is_grad_enabled():
                found = _Gradients.apply(ctx.backend, *arguments)
            else:
                found = OPERATORS[ctx.backend][1](*arguments)
            gradients = [g if needed else None for g, needed in zip(found, needs, strict=True)]
        d_residual = d_out if need_residual else None
        return (None, gradients[0], d_residual, None, None, None, *gradients[1:], None, None, None, None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """A batch of x (and of the residual) is one more leading dimension."""
        _, x_dim, residual_dim, *others = in_dims
        if any(dim is not None for dim in others):
            raise ValueError("rm_adapter under vmap takes a batch of x and of the residual; valid: unbatched weights")
        backend, x, residual, *rest = inputs

        def batched(tensor: Tensor, dim: int | None) -> Tensor:
            return tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

        residual = residual if residual is None else batched(residual, residual_dim)
        out, rec_loss = _RMAdapter.apply(backend, batched(x, x_dim), residual, *rest)
        if rest[7] is None:  # an empty loss for each; torch 2.10 fails on unbatched outputs under out_dims=1
            rec_loss = rec_loss.expand(info.batch_size, 0)
        return (out, rec_loss), (0, 0)


# torch binds the inputs to this signature at each call; inspecting it anew, or binding name by name, costs 17 us of 38
# that autograd adds to the operator.
_RMAdapter.forward.__signature__ = inspect.signature(_RMAdapter.forward)  # type: ignore[attr-defined]


def _autocast(x: Tensor) -> Tensor:
    """``x`` in the dtype that autocast asks for; raises where it is no input of the operator."""
    dtype = dtype_of(x)
    return x if x.dtype == dtype else x.to(dtype)


def rm_adapter(
    x: Tensor,
    w_down: Tensor,
    b_down: Tensor,
    w_up: Tensor,
    b_up: Tensor,
    w_rec1: Tensor | None = None,
    b_rec1: Tensor | None = None,
    w_rec2: Tensor | None = None,
    b_rec2: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    norm: Norm | None = None,
    scale: float = 1.0,
    activation: str = "gelu",
    objective: str = "l2",
    local_reconstruction: bool = True,
    branch_grad_scale: float = 1.0,
    backend: str = AUTO,
) -> tuple[Tensor, Tensor]:
    """Dual-branch adapter on one shared down-projection (RMAdapter, AAAI 2026).

        z    = activation(x w_down + b_down)                                       [..., r]
        out  = residual + scale * (z w_up + b_up)                                  [..., D]
        rec  = activation(z w_rec1 + b_rec1) w_rec2 + b_rec2                       [..., D]
        rec_loss = sum (x - rec)^2, sum |x - rec| or 1 - cos(x, rec)               [...]

    Args:
        x: [..., D], any strides, fp64, fp32, bf16 or fp16; autocast casts it, and it alone.
        w_down: [D, r]; like every weight in the dtype of ``x``, or in fp32, which is rounded to that of ``x`` for the
            products and gets the unrounded sums as its gradients.
        b_down: [r].
        w_up: [r, D].
        b_up: [D].
        w_rec1: [r, h]; this and the next three all or none.
        b_rec1: [h].
        w_rec2: [h, D].
        b_rec2: [D].
        residual: like ``x``, or fp32; None: nothing is added.
        norm: (weight [D] or None, bias [D] or None, eps): ``x`` goes through this frozen LayerNorm first, and is the
            normalised input in every formula.
        scale: factor on the adaptation branch.
        activation: gelu, relu, quick_gelu or silu.
        objective: l2, l1 or cosine, for ``rec_loss``.
        local_reconstruction: ``x`` is a constant for ``rec_loss``, as its input and as its target.
        branch_grad_scale: factor on the gradient that ``out`` sends to the weights (not on that to ``x``).
        backend: auto, or one of ``available_backends()``, which then never falls back to another.

    Returns:
        ``out`` in the dtype and memory layout of the residual (without one: of ``x``), and ``rec_loss`` in fp32
        (fp64 for fp64 ``x``), empty without reconstruction weights.

    Raises:
        TypeError, ValueError: an argument of another type, dtype, layout, device or shape (a tensor in place of a
            number, a sparse or nested one), or an unknown name; the message says which and what is valid.

    On the meta device the results have their shapes and dtypes, and no values. Differentiable once.
    Backward keeps ``x`` and the weights and computes the rest again.
    """
    x = _autocast(x)
    weights = (w_down, b_down, w_up, b_up, w_rec1, b_rec1, w_rec2, b_rec2)
    check_settings(scale, branch_grad_scale, activation, objective, local_reconstruction)
    check_tensors(x, weights, residual, norm)
    norm_weight, norm_bias, norm_eps = norm or (None, None, None)
    settings = (scale, activation, objective, local_reconstruction, branch_grad_scale)
    call = Call(x, w_down.shape[1], 0 if w_rec1 is None else w_rec1.shape[1])
    chosen = choose(call, backend).backend
    arguments: tuple[Any, ...] = (x, residual, norm_weight, norm_bias, norm_eps, *weights, *settings)
    recording = torch.is_grad_enabled()
    # Within a dual level the Function says that it has no forward-mode derivative; an operator drops tangents.
    if not recording and not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0:
        return OPERATORS[chosen][0](*arguments)
    if compiling := torch.compiler.is_compiling():
        # Dynamo takes no tensor twice (a residual that is x), and believes that what torch.func.grad wraps requires no
        # gradient, which it knows of a view. Where nothing requires one it fails at a Function of ``*inputs``.
        own = [t if t is None else t.view_as(t) for t in (x, residual, norm_weight, norm_bias, *weights)]
        arguments = (*own[:4], norm_eps, *own[4:], *settings)
        if not any(t is not None and t.requires_grad for t in own):
            return OPERATORS[chosen][0](*arguments)
    prepared = None
    # Under vmap the batch of x would be one of its weights too.
    alone = compiling or not torch._C._are_functorch_transforms_active()
    if chosen in PREPARE and alone and recording and prepare_for(x):
        with torch.no_grad():
            prepared = PREPARE[chosen](x, norm_weight, norm_bias, norm_eps, w_down, b_down, w_up, w_rec1, w_rec2)
    return _RMAdapter.apply(chosen, *arguments, prepared)


def rm_adapter_(
    x: Tensor,
    w_down: Tensor,
    b_down: Tensor,
    w_up: Tensor,
    b_up: Tensor,
    *,
    residual: Tensor,
    norm: Norm | None = None,
    scale: float = 1.0,
    activation: str = "gelu",
    backend: str = AUTO,
) -> Tensor:
    """``rm_adapter`` for inference: adds the adaptation branch to ``residual`` in place, without a reconstruction.

    Arguments as of ``rm_adapter``; ``residual`` may be ``x`` itself, but must not overlap it otherwise, nor itself.

    Returns:
        ``residual``.

    Raises:
        TypeError, ValueError: as ``rm_adapter``; also where a tensor requires grad while autograd records, since
            what backward would need is overwritten, and where ``residual`` is missing.
    """
    x = _autocast(x)
    weights = (w_down, b_down, w_up, b_up)
    if not isinstance(residual, Tensor):
        raise TypeError(f"residual is {type(residual).__name__}; valid: a tensor, which is written to")
    check_settings(scale, 1.0, activation, "l2", True)
    check_tensors(x, (*weights, None, None, None, None), residual, norm)
    if torch.is_grad_enabled():
        names = ("x", "residual", "w_down", "b_down", "w_up", "b_up")
        for name, tensor in zip(names, (x, residual, *weights), strict=True):
            if tensor.requires_grad:
                raise ValueError(f"{name} requires grad; valid: rm_adapter_ under torch.no_grad(), or rm_adapter")
    refuse_overlap(x, residual)
    norm_weight, norm_bias, norm_eps = norm or (None, None, None)
    chosen = choose(Call(x, w_down.shape[1], 0), backend).backend
    if chosen in IN_PLACE and not residual.is_neg():  # whose memory holds other numbers
        IN_PLACE[chosen](x, residual, norm_weight, norm_bias, norm_eps, *weights, scale, activation)
        return residual
    settings = (scale, activation, "l2", True, 1.0)
    rec = (None, None, None, None)
    return residual.copy_(
        OPERATORS[chosen][0](x, residual, norm_weight, norm_bias, norm_eps, *weights, *rec, *settings)[0]
    )
