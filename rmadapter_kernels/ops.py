"""The operators as torch sees them: schemas, implementations, shapes.

Forward and backward have a fixed number of arguments and results, so that ``torch.compile`` and the dispatcher take
them as they are; absent gradients are empty tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from rmadapter_kernels import eager

_SHARED = (
    "Tensor? norm_weight, Tensor? norm_bias, float? norm_eps, "
    "Tensor w_down, Tensor b_down, Tensor w_up, Tensor b_up, "
    "Tensor? w_rec1, Tensor? b_rec1, Tensor? w_rec2, Tensor? b_rec2, "
    "float scale, str activation, str objective, bool local_reconstruction, float branch_grad_scale"
)
FORWARD_SCHEMA = f"(Tensor x, Tensor? residual, {_SHARED}) -> (Tensor, Tensor)"
BACKWARD_SCHEMA = (
    f"(Tensor x, Tensor? d_out, Tensor? d_loss, {_SHARED}, bool[9] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
# What the Triton backend also takes: its prepared weights, where a caller has them.
PREPARED_ARGUMENT = "Tensor? prepared=None"
PREPARE_SCHEMA = (
    "(Tensor x, Tensor? norm_weight, Tensor? norm_bias, float? norm_eps, Tensor w_down, Tensor b_down, Tensor w_up, "
    "Tensor? w_rec1, Tensor? w_rec2) -> Tensor"
)
IN_PLACE_SCHEMA = (
    "(Tensor x, Tensor(a!) residual, Tensor? norm_weight, Tensor? norm_bias, float? norm_eps, "
    "Tensor w_down, Tensor b_down, Tensor w_up, Tensor b_up, float scale, str activation) -> ()"
)


def _forward_shapes(x: Tensor, residual: Tensor | None, *shared) -> tuple[Tensor, Tensor]:
    """Results of the forward operator without their values."""
    out = torch.empty_like(x if residual is None else residual)
    w_rec1 = shared[7]
    return out, x.new_empty(0 if w_rec1 is None else x.shape[:-1], dtype=eager.wide_dtype(x.dtype))


def _backward_shapes(x: Tensor, d_out: Tensor | None, d_loss: Tensor | None, *shared) -> tuple[Tensor, ...]:
    """Results of the backward operator without their values."""
    needs = shared[16]
    tensors = (x, *shared[3:11])
    return tuple(
        torch.empty_like(tensor) if needed else x.new_empty(0) for tensor, needed in zip(tensors, needs, strict=True)
    )


def _prepare_shapes(
    x: Tensor, norm_weight, norm_bias, norm_eps, w_down: Tensor, b_down, w_up, w_rec1, w_rec2
) -> Tensor:
    """The prepared weights without their values."""
    from rmadapter_kernels.triton.buffers import prepared_parts

    d, r = w_down.shape
    _, size = prepared_parts(x.dtype, d, r, 0 if w_rec1 is None else w_rec1.shape[1])
    return x.new_empty(size, dtype=torch.uint8)


def _in_place_shapes(x: Tensor, residual: Tensor, *rest) -> None:
    """The in-place operator gives nothing back."""


_LIBRARY = torch.library.Library("rmadapter", "DEF")


def _define(backend: str) -> tuple[Callable, Callable]:
    """Forward and backward operator of ``backend``: schema and shapes, no implementation yet."""
    for name, schema, shapes in (
        (f"{backend}_forward", FORWARD_SCHEMA, _forward_shapes),
        (f"{backend}_backward", BACKWARD_SCHEMA, _backward_shapes),
    ):
        if backend == "triton":
            schema = schema.replace(") ->", f", {PREPARED_ARGUMENT}) ->")
        _LIBRARY.define(name + schema)
        torch.library.register_fake(f"rmadapter::{name}", shapes, lib=_LIBRARY)
    namespace = torch.ops.rmadapter
    return getattr(namespace, f"{backend}_forward").default, getattr(namespace, f"{backend}_backward").default


# Backend name -> its forward and backward operator.
OPERATORS = {backend: _define(backend) for backend in ("triton", "cpu", "eager")}
_LIBRARY.impl("eager_forward", eager.forward, "CompositeExplicitAutograd")
_LIBRARY.impl("eager_backward", eager.backward, "CompositeExplicitAutograd")


def _triton(name: str) -> Callable:
    """An implementation of the Triton backend, which is imported at the first call.

    Where Dynamo has given up a frame that calls it, it would compile these Python functions in the call. It is told not
    to once it is there: telling imports it.
    """

    implementation = not_compiled = None

    def call(*arguments):
        nonlocal implementation, not_compiled
        if implementation is None:
            from rmadapter_kernels.triton import operators

            implementation = getattr(operators, name)
        if not_compiled is None and "torch._dynamo" in sys.modules:
            not_compiled = torch.compiler.disable(implementation)
        return (not_compiled or implementation)(*arguments)

    return call


_LIBRARY.impl("triton_forward", _triton("forward"), "CompositeExplicitAutograd")
_LIBRARY.impl("triton_backward", _triton("backward"), "CompositeExplicitAutograd")
_LIBRARY.define("triton_prepare" + PREPARE_SCHEMA)
torch.library.register_fake("rmadapter::triton_prepare", _prepare_shapes, lib=_LIBRARY)
_LIBRARY.impl("triton_prepare", _triton("prepare"), "CompositeExplicitAutograd")
# Backend name -> operator that prepares the weights for a forward call and its backward.
PREPARE = {"triton": torch.ops.rmadapter.triton_prepare.default}
_LIBRARY.define("triton_forward_" + IN_PLACE_SCHEMA)
torch.library.register_fake("rmadapter::triton_forward_", _in_place_shapes, lib=_LIBRARY)
_LIBRARY.impl("triton_forward_", _triton("forward_"), "CompositeExplicitAutograd")


def _counted(keyset: torch._C.DispatchKeySet, x: Tensor, residual: Tensor, *rest) -> None:
    """Count the write to ``residual``, so that autograd refuses a backward pass that needs what was there."""
    torch.autograd.graph.increment_version(residual)
    IN_PLACE["triton"].redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, x, residual, *rest)


_LIBRARY.impl("triton_forward_", _counted, "ADInplaceOrView", with_keyset=True)
# Backend name -> operator that adds to the residual in place; others compute and copy.
IN_PLACE = {"triton": torch.ops.rmadapter.triton_forward_.default}
