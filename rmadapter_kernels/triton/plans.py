"""Plans: what follows from dtypes, shapes, strides, device and options alone, made once for each kind of call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rmadapter_kernels.triton import backward as backward_kernels
from rmadapter_kernels.triton import forward as forward_kernels
from rmadapter_kernels.triton.launch import Launch, Part, Scratch, TunedLaunch
from rmadapter_kernels.triton.layout import Rows, collapse, largest_offset, stride_unit
from rmadapter_kernels.triton.options import options
from rmadapter_kernels.triton.tuning import Config, Problem, chunk_count, config_for, device_of, padded

INT32_LIMIT = 2**31 - 1
SUM_BLOCK, SUM_CHUNKS = 128, 16
# For tests: 64-bit addresses must give the same bits.
force_wide = False


def precision_of(dtype: torch.dtype) -> str:
    """How products of ``dtype`` are formed: ieee, tf32 or tf32x3 for fp32, "" for 16 bits."""
    if dtype != torch.float32:
        return ""
    chosen = options().fp32_precision
    if chosen is None:
        chosen = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    return chosen


class Needs(NamedTuple):
    """Which gradients a backward call computes, after what the incoming gradients leave of them."""

    x: bool
    w_down: bool
    b_down: bool
    w_up: bool
    b_up: bool
    w_rec1: bool
    b_rec1: bool
    w_rec2: bool
    b_rec2: bool

    @classmethod
    def of(cls, asked: Sequence[bool], has_out: bool, has_loss: bool, local: bool) -> Needs:
        """Those asked for that are not zero by construction."""
        either = has_out or has_loss
        reach = (has_out or (has_loss and not local), either, either, has_out, has_out, *[has_loss] * 4)
        return cls(*(a and b for a, b in zip(asked, reach, strict=True)))


class Shape(NamedTuple):
    """Sizes and settings that every kernel of one call shares."""

    dtype: torch.dtype
    d: int
    r: int
    h: int
    tokens: int
    norm: bool
    activation: str
    objective: str

    @property
    def constants(self) -> tuple[int, ...]:
        """D, R, H, BLOCK_R, BLOCK_H."""
        return self.d, self.r, self.h, padded(self.r), padded(self.h or 1)

    def problem(self, kernel: str) -> Problem:
        """What the choice of a configuration depends on."""
        return Problem(kernel, self.dtype, precision_of(self.dtype), self.d, self.r, self.h, self.tokens)


class Addresses(NamedTuple):
    """How the rows of a call's wide tensors are addressed."""

    rows: Rows
    unit: int
    wide: bool

    @classmethod
    def of(cls, tensors: list[Tensor], losses: list[Tensor], scratch_width: int) -> Addresses | None:
        """Of wide tensors [..., D] and of losses [...]; None: they share no two nested loops, or have other strides
        than 1 in D."""
        lead = tuple(tensors[0].shape[:-1])
        if any(tensor.stride(-1) != 1 for tensor in tensors):
            return None
        strides = [tensor.stride()[:-1] for tensor in tensors] + [loss.stride() for loss in losses]
        rows = collapse(lead, strides)
        if rows is None:
            return None
        tokens = tensors[0].numel() // tensors[0].shape[-1]
        if tokens > INT32_LIMIT:
            raise ValueError(f"x has {tokens} tokens; valid: at most {INT32_LIMIT}")
        farthest = max(largest_offset(lead, own, tensors[0].shape[-1]) for own in strides)
        # Masked rows of the last block are addressed too, at most 128 of them.
        farthest += 128 * max((abs(s) for own in strides for s in own), default=0)
        wide = force_wide or max(farthest, (tokens + 128) * scratch_width) > INT32_LIMIT
        return cls(rows, stride_unit(rows, range(len(tensors))), wide)

    def strides(self, index: int, unit: int | None = None) -> tuple[int, int]:
        """The two strides of one tensor, in units."""
        outer, last = self.rows.strides[index]
        unit = unit or self.unit
        return outer // unit, last // unit

    @property
    def constants(self) -> tuple[int, bool, bool]:
        """UNIT, TWO_DIMS, WIDE."""
        return self.unit, self.rows.two_dims, self.wide


def launch_options(config: Config) -> dict[str, int]:
    """Options of Triton's in a configuration."""
    return {"num_warps": config.num_warps, "num_stages": config.num_stages}


class ForwardPlan:
    """Launch of the forward kernel for one kind of call."""

    def __init__(self, shape: Shape, addresses: Addresses, index: int | None):
        self.shape, self.addresses = shape, addresses
        self.launch = TunedLaunch(shape.problem("forward"), device_of(index), self._launch)

    def _launch(self, config: Config) -> Launch:
        s, a = self.shape, self.addresses
        return Launch(
            forward_kernels.rm_adapter_forward_kernel,
            (-(-s.tokens // config.block_m), 1, 1),
            (),
            (s.tokens, a.rows.inner, *a.strides(0), *a.strides(1), *a.strides(2)),
            (
                *s.constants, config.block_m, config.block_d, s.activation, s.objective, s.h > 0, s.norm,
                *a.constants, precision_of(s.dtype) or "ieee",
            ),
            launch_options(config),
        )  # fmt: skip


class BackwardPlan:
    """Launches of the backward kernels for one kind of call, those that its ``needs`` leave.

    ``addresses`` are of x, d_out, dx and d_loss, in this order; ``zeros`` says which of the gradients are zero by
    construction though they were ``asked`` for.
    """

    def __init__(self, shape: Shape, addresses: Addresses, asked: Sequence[bool], has_out: bool, has_loss: bool,
                 local: bool, index: int | None):  # fmt: skip
        needs = Needs.of(asked, has_out, has_loss, local)
        self.zeros = tuple(place for place in range(9) if asked[place] and (shape.tokens == 0 or not needs[place]))
        self.shape, self.addresses, self.needs, self.local = shape, addresses, needs, local
        device = device_of(index)
        tokens, block_r, block_h = shape.tokens, padded(shape.r), padded(shape.h or 1)
        # bf16 holds whatever carries the loss gradient, fp16 does not.
        narrow = torch.bfloat16 if shape.dtype == torch.bfloat16 else torch.float32
        rec2 = needs.w_rec2 or needs.b_rec2
        rec1 = needs.w_rec1 or needs.b_rec1
        down = needs.w_down or needs.b_down
        scratch = Scratch()

        def part(wanted: bool, width: int | None, dtype: torch.dtype) -> Part | None:
            return scratch.take((tokens,) if width is None else (tokens, width), dtype) if wanted else None

        statistics = shape.norm and (needs.w_down or rec2)
        cosine = rec2 and shape.objective == "cosine"
        self.between = (
            part(needs.w_up or needs.w_rec1, block_r, shape.dtype),
            part(rec2, block_h, shape.dtype),
            part(down, block_r, narrow),
            part(rec1, block_h, narrow),
            part(statistics, None, torch.float32),
            part(statistics, None, torch.float32),
            part(cosine, None, torch.float32),
            part(cosine, None, torch.float32),
        )
        self.use_loss = has_loss and (down or rec1 or rec2 or (needs.x and not local))
        self.use_out = has_out and (down or needs.x)
        self.rows = self.weights = self.sum = None
        if needs.x or any(part is not None for part in self.between):
            self.rows = TunedLaunch(shape.problem("rows"), device, self._rows)
        if any(needs[1:]):
            problem = shape.problem("weights")
            chunks = chunk_count(problem, config_for(problem, device), device)
            self.chunk_rows = max(1, -(-tokens // chunks))
            self.chunks = -(-tokens // self.chunk_rows)
            d, r, h = shape.d, shape.r, shape.h
            self.parts = scratch.take((self.chunks, (2 * r + h + 2) * d + (r + 1) * h + r), torch.float32)
            self.weights = TunedLaunch(problem, device, self._weights)
            largest = max(
                n for n, needed in zip((d * r, r, r * d, d, r * h, h, h * d, d), needs[1:], strict=True) if needed
            )
            self.sum = Launch(
                backward_kernels.rm_adapter_backward_sum_kernel,
                (-(-largest // SUM_BLOCK), 8, 1),
                (self.parts,),
                (self.chunks,),
                (d, r, h, SUM_BLOCK, SUM_CHUNKS),
                {"num_warps": 4},
            )
        self.scratch_bytes = scratch.size

    def _scalars(self) -> tuple[int, ...]:
        a = self.addresses
        return self.shape.tokens, a.rows.inner, *a.strides(0), *a.strides(1), *a.strides(3, unit=1)

    def _rows(self, config: Config) -> Launch:
        s, a = self.shape, self.addresses
        return Launch(
            backward_kernels.rm_adapter_backward_rows_kernel,
            (-(-s.tokens // config.block_m), 1, 1),
            self.between,
            (*self._scalars(), *a.strides(2)),
            (
                *s.constants, config.block_m, config.block_d, s.activation, s.objective, self.local, s.norm,
                *a.constants, precision_of(s.dtype) or "ieee",
            ),
            launch_options(config),
        )  # fmt: skip

    def _weights(self, config: Config) -> Launch:
        s, a, n = self.shape, self.addresses, self.needs
        return Launch(
            backward_kernels.rm_adapter_backward_weights_kernel,
            (-(-s.d // config.block_d) + 1, self.chunks, 1),
            (*self.between, self.parts),
            (*self._scalars(), self.chunk_rows),
            (
                *s.constants, config.block_m, config.block_d, s.objective, s.norm, *n[1:],
                *a.constants, precision_of(s.dtype) or "ieee",
            ),
            launch_options(config),
        )  # fmt: skip
