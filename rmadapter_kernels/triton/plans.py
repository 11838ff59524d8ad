"""Plans: what follows from dtypes, shapes, strides, device and options alone, made once for each kind of call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmadapter_kernels.triton import backward_rows, backward_weights, prepare
from rmadapter_kernels.triton import forward as forward_kernels
from rmadapter_kernels.triton.buffers import Buffer, Part, padded, prepared_parts
from rmadapter_kernels.triton.devices import device_of
from rmadapter_kernels.triton.launch import Launch, TunedLaunch
from rmadapter_kernels.triton.layout import Rows, collapse, largest_offset, stride_unit
from rmadapter_kernels.triton.options import options
from rmadapter_kernels.triton.tuning import Config, Problem, chunks_of, config_for, is_forced, slice_rows

INT32_LIMIT = 2**31 - 1
SUM_BLOCK, SUM_CHUNKS = 128, 32
PREPARE_BLOCK_D, PREPARE_COLUMNS = 64, 4
# For tests: 64-bit addresses must give the same bits.
force_index64 = False

WEIGHTS = ("w_down", "b_down", "w_up", "b_up", "w_rec1", "b_rec1", "w_rec2", "b_rec2")


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
    """Sizes and settings that every kernel of one call shares; ``precision`` as ``precision_of`` gives it.

    ``prepared``: the kernels take the weights as the prepare kernel leaves them.
    """

    dtype: torch.dtype
    d: int
    r: int
    h: int
    tokens: int
    norm: bool
    activation: str
    objective: str
    precision: str
    prepared: bool

    @property
    def sizes(self) -> dict[str, Any]:
        """Constants of every kernel with products."""
        return {"D": self.d, "R": self.r, "H": self.h, "BLOCK_R": padded(self.r), "BLOCK_H": padded(self.h or 1),
                "NORM": self.norm, "PRECISION": self.precision or "ieee"}  # fmt: skip

    @property
    def without_norm(self) -> dict[str, None]:
        """The norm's pointers, absent, where there is none."""
        return {} if self.norm else {"norm_weight": None, "norm_bias": None}

    @property
    def fold(self) -> bool:
        """Whether K2 multiplies x as it is though there is a LayerNorm: fp32 would lose what a large mean cancels."""
        return self.norm and self.dtype != torch.float32

    def problem(self, kernel: str) -> Problem:
        """What the choice of a configuration depends on."""
        return Problem(kernel, self.dtype, self.precision, self.d, self.r, self.h, self.tokens)

    def weights(self, kernel: Any) -> dict[str, Part | None]:
        """The prepared ones among the pointers of ``kernel``."""
        parts = prepared_parts(self.dtype, self.d, self.r, self.h)[0] if self.prepared else {}
        return {name: part for name, part in parts.items() if name in kernel.arg_names}


class Addresses(NamedTuple):
    """How the rows of a call's wide tensors are addressed."""

    rows: Rows
    unit: int
    index64: bool

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
        index64 = force_index64 or max(farthest, (tokens + 128) * scratch_width) > INT32_LIMIT
        return cls(rows, stride_unit(rows, range(len(tensors))), index64)

    def strides(self, *names: str, unit: int | None = None) -> dict[str, int]:
        """The two strides of each tensor in units, by name and in the order in which they were given; "" skips one."""
        unit = unit or self.unit
        found: dict[str, int] = {}
        for name, (outer, last) in zip(names, self.rows.strides, strict=False):
            if name:
                found |= {f"{name}_stride0": outer // unit, f"{name}_stride1": last // unit}
        return found

    @property
    def constants(self) -> dict[str, Any]:
        """What a kernel has to know about them at compile time, and the length of the inner loop."""
        return {"UNIT": self.unit, "TWO_DIMS": self.rows.two_dims, "INDEX64": self.index64, "inner": self.rows.inner}


def launch_options(config: Config) -> dict[str, int]:
    """Options of Triton's in a configuration."""
    return {"num_warps": config.num_warps, "num_stages": config.num_stages}


def tiles_of(config: Config) -> dict[str, int]:
    """Constants of a kernel in a configuration."""
    return {"BLOCK_M": config.block_m, "BLOCK_D": config.block_d, "STAGES": config.num_stages}


def row_blocks(config: Config, rows: int) -> tuple[int, int, int]:
    """The grid of a kernel whose programs take blocks of rows."""
    return -(-rows // config.block_m), 1, 1


class PreparePlan:
    """Launch of the prepare kernel for one kind of weights."""

    def __init__(self, dtype: torch.dtype, d: int, r: int, h: int, norm: bool, precision: str):
        parts, self.bytes = prepared_parts(dtype, d, r, h)
        shape = Shape(dtype, d, r, h, 0, norm, "gelu", "l2", precision, False)
        outputs = {f"{name}_out": part for name, part in parts.items()}
        constants = {"BLOCK_D": PREPARE_BLOCK_D, "ROWS": 1 << (d - 1).bit_length(), "COLUMNS": PREPARE_COLUMNS}
        absent = dict.fromkeys(("w_rec1", "w_rec2", "w_rec1_out", "w_rec2_out")) if h == 0 else {}
        kernel = prepare.rm_adapter_prepare_kernel
        self.launch = Launch(kernel, shape.sizes | shape.without_norm | constants | absent, outputs, {"num_warps": 4})
        self.grid = (-(-d // PREPARE_BLOCK_D) + padded(r) // PREPARE_COLUMNS, 1, 1)


class ForwardPlan:
    """Launch of the forward kernel for one kind of call; ``addresses`` are of x, residual and out."""

    def __init__(self, shape: Shape, addresses: Addresses, index: int | None):
        self.shape, self.addresses = shape, addresses
        problem = shape.problem("forward")
        config = config_for(problem, device_of(index), shape.norm)
        self.launch = TunedLaunch(config, self._launch, row_blocks, shape.tokens, is_forced("forward"))

    def _launch(self, config: Config) -> Launch:
        s, a = self.shape, self.addresses
        kernel = forward_kernels.rm_adapter_forward_kernel
        rec = {} if s.h else dict.fromkeys(("w_rec1", "b_rec1", "w_rec2", "b_rec2", "rec_loss"))
        fixed = s.sizes | a.constants | a.strides("x", "residual", "out") | tiles_of(config) | rec | s.without_norm | {
            "M": s.tokens, "ACTIVATION": s.activation, "OBJECTIVE": s.objective, "PREPARED": s.prepared,
            "THREADS": 32 * config.num_warps,
        } | ({} if s.prepared else {"column_sum": None})  # fmt: skip
        return Launch(kernel, fixed, s.weights(kernel), launch_options(config))


class Slice(NamedTuple):
    """Rows that K1 and then K2 take before the next ones, and K2's chunks of them."""

    first_row: int
    last_row: int
    first_chunk: int


class BackwardPlan:
    """Launches of the backward kernels for one kind of call, those that its ``needs`` leave.

    ``addresses`` are of x, d_out, dx and d_loss, in this order; ``zeros`` says which of the gradients are zero by
    construction though they were ``asked`` for.
    """

    def __init__(self, shape: Shape, addresses: Addresses, asked: Sequence[bool], has_out: bool, has_loss: bool,
                 local: bool, index: int | None):  # fmt: skip
        needs = Needs.of(asked, has_out, has_loss, local)
        self.zeros = tuple(place for place in range(9) if asked[place] and not needs[place])
        self.shape, self.addresses, self.needs, self.local = shape, addresses, needs, local
        device = device_of(index)
        tokens, d, r, h = shape.tokens, shape.d, shape.r, shape.h
        block_r, block_h = padded(r), padded(h or 1)
        # bf16 holds whatever carries the loss gradient, fp16 does not.
        narrow = torch.bfloat16 if shape.dtype == torch.bfloat16 else torch.float32
        rec2 = needs.w_rec2 or needs.b_rec2
        rec1 = needs.w_rec1 or needs.b_rec1
        down = needs.w_down or needs.b_down
        scratch = Buffer("scratch")

        def part(wanted: bool, width: int | None, dtype: torch.dtype) -> Part | None:
            return scratch.take((tokens,) if width is None else (tokens, width), dtype) if wanted else None

        statistics = shape.norm and (needs.w_down or rec2 or (shape.fold and down))
        cosine = rec2 and shape.objective == "cosine"
        # What K1 leaves for K2.
        self.between = {
            "z": part(needs.w_up or needs.w_rec1, block_r, shape.dtype),
            "h": part(rec2, block_h, shape.dtype),
            "dz": part(down, block_r, narrow),
            "dh": part(rec1, block_h, narrow),
            "mean": part(statistics, None, torch.float32),
            "rstd": part(statistics, None, torch.float32),
            "to_u": part(cosine, None, torch.float32),
            "to_rec": part(cosine, None, torch.float32),
        }
        self.use_loss = has_loss and (down or rec1 or rec2 or (needs.x and not local))
        self.use_out = has_out and (down or needs.x)
        self.rows = self.weights = self.sum = None
        rows_config = config_for(shape.problem("rows"), device)
        if needs.x or any(part is not None for part in self.between.values()):
            self.rows = TunedLaunch(rows_config, self._rows, row_blocks, tokens, is_forced("rows"))
        self.slices = [Slice(0, tokens, 0)]
        if any(needs[1:]):
            problem = shape.problem("weights")
            config = config_for(problem, device)
            most = slice_rows(problem, rows_config, device) if self.rows is not None else tokens
            self.chunk_rows = chunks_of(problem, config, device, min(most, tokens))
            self.slices, chunks = [], 0
            for first in range(0, tokens, most):
                self.slices.append(Slice(first, min(first + most, tokens), chunks))
                chunks += -(-(self.slices[-1].last_row - first) // self.chunk_rows)
            self.chunks = max(1, chunks)
            self.parts = scratch.take((self.chunks, (2 * r + h + 2) * d + (r + 1) * h + 2 * r), torch.float32)
            self.weights = TunedLaunch(config, self._weights, self._weights_grid, tokens, is_forced("weights"))
            self.sum = self._sum()
            self.sum_grid = (backward_weights.sum_blocks(d, r, h, SUM_BLOCK), 1, 1)
        self.scratch_bytes = scratch.size

    def _shared(self) -> dict[str, Any]:
        s, a = self.shape, self.addresses
        strides = a.strides("x", "d_out") | a.strides("", "", "", "d_loss", unit=1)
        flags = {"FOLD": s.fold, "OBJECTIVE": s.objective, "PREPARED": s.prepared}
        return s.sizes | a.constants | strides | s.without_norm | flags

    def _rows(self, config: Config) -> Launch:
        s = self.shape
        kernel = backward_rows.rm_adapter_backward_rows_kernel
        absent = [*([] if self.use_out else ["d_out"]), *([] if self.needs.x else ["dx"])]
        if not self.use_loss:
            absent += ["d_loss", "w_rec1", "b_rec1", "w_rec2", "b_rec2"]
        if not s.prepared:
            absent += ["column_sum"]
        fixed = self._shared() | self.addresses.strides("", "", "dx") | tiles_of(config) | {
            "ACTIVATION": s.activation, "LOCAL": self.local,
        } | dict.fromkeys(absent)  # fmt: skip
        parts = {name: part for name, part in s.weights(kernel).items() if name not in absent}
        return Launch(kernel, fixed, self.between | parts, launch_options(config))

    def _weights(self, config: Config) -> Launch:
        s, n = self.shape, self.needs
        kernel = backward_weights.rm_adapter_backward_weights_kernel
        rec2 = n.w_rec2 or n.b_rec2
        absent = [*([] if n.w_up or n.b_up else ["d_out"]), *([] if rec2 else ["d_loss", "w_rec2", "b_rec2"])]
        fixed = self._shared() | tiles_of(config) | {"chunk_rows": self.chunk_rows} | dict.fromkeys(absent) | {
            "NEED_DOWN": n.w_down, "NEED_B_DOWN": n.b_down, "NEED_UP": n.w_up, "NEED_B_UP": n.b_up,
            "NEED_REC1": n.w_rec1, "NEED_B_REC1": n.b_rec1, "NEED_REC2": n.w_rec2, "NEED_B_REC2": n.b_rec2,
        }  # fmt: skip
        parts = {name: part for name, part in s.weights(kernel).items() if name not in absent}
        return Launch(kernel, fixed, self.between | parts | {"parts": self.parts}, launch_options(config))

    def _weights_grid(self, config: Config, rows: int) -> tuple[int, int, int]:
        return -(-self.shape.d // config.block_d) + 1, -(-rows // self.chunk_rows), 1

    def _sum(self) -> Launch:
        s = self.shape
        fixed: dict[str, Any] = {"D": s.d, "R": s.r, "H": s.h, "FOLD": s.fold, "BLOCK": SUM_BLOCK, "CHUNKS": SUM_CHUNKS,
                 "chunks": self.chunks}  # fmt: skip
        fixed |= {f"d{name}": None for name, needed in zip(WEIGHTS, self.needs[1:], strict=True) if not needed}
        kernel = backward_weights.rm_adapter_backward_sum_kernel
        return Launch(kernel, fixed, {"parts": self.parts}, {"num_warps": 4})
