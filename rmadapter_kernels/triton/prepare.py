"""The prepare kernel: the weights as the other kernels multiply them, made once where those would all do it again.

Each program of the other kernels loads every weight. In fp32 they are twice the bytes that the product needs, and each
program would round them, fold LayerNorm into W_down and sum its columns again, tile by tile.

    w_down  [D, BLOCK_R]            diag(gamma) W_down in the dtype of the product, zero beyond R
    b_down  [BLOCK_R] fp32          b_down + beta W_down
    column_sum [BLOCK_R] fp32       1^T w_down, as rounded
    w_up    [BLOCK_R, D]  w_rec1 [BLOCK_R, BLOCK_H]  w_rec2 [BLOCK_H, D], zero beyond R and H

Rows of an odd R are aligned here, which those of the caller's W_down are not.
"""

import triton
import triton.language as tl

from rmadapter_kernels.triton.primitives import down_weight, load_matrix, load_rec1, load_up, load_vector


@triton.jit
def prepare_sums(w_down, b_down, norm_weight, norm_bias, b_down_out, column_sum_out, first, dtype: tl.constexpr,
                 D: tl.constexpr, R: tl.constexpr, BLOCK_R: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                 NORM: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """b_down and column_sum for COLUMNS of the bottleneck, from all of their rows at once."""
    r = first + tl.arange(0, COLUMNS)
    rows = tl.arange(0, ROWS)
    bias = load_vector(b_down, r, R, False)
    if NORM:
        weight = down_weight(w_down, norm_weight, rows, r, dtype, D, R, 0, False, False, PRECISION)
        tl.store(column_sum_out + r, tl.sum(weight.to(tl.float32), 0))
        if norm_bias is not None:
            raw = load_matrix(w_down, rows, r, D, R, False, False).to(dtype).to(tl.float32)
            bias += tl.sum(raw * load_vector(norm_bias, rows, D, False)[:, None], 0)
    tl.store(b_down_out + r, bias)


@triton.jit
def rm_adapter_prepare_kernel(
    norm_weight, norm_bias, w_down, b_down, w_up, w_rec1, w_rec2, w_down_out, b_down_out, column_sum_out, w_up_out,
    w_rec1_out, w_rec2_out,
    D: tl.constexpr, R: tl.constexpr, H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NORM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of D, then groups of COLUMNS of the bottleneck; ROWS is a power of two from D on."""
    dtype: tl.constexpr = w_down_out.dtype.element_ty
    EVEN_D: tl.constexpr = D % BLOCK_D == 0
    TILES: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    tile = tl.program_id(0)
    r = tl.arange(0, BLOCK_R)
    if tile < TILES:
        columns = tile * BLOCK_D + tl.arange(0, BLOCK_D)
        mask = columns < D
        # A name a shape: the compiler refuses a branch that gives a name of the code before it another one.
        down = down_weight(w_down, norm_weight, columns, r, dtype, D, R, BLOCK_R, EVEN_D, False, PRECISION)
        tl.store(w_down_out + columns[:, None] * BLOCK_R + r[None, :], down, mask=mask[:, None])
        up = load_up(w_up, columns, R, D, BLOCK_R, EVEN_D, dtype, False, PRECISION)
        tl.store(w_up_out + r[:, None] * D + columns[None, :], up, mask=mask[None, :])
        if w_rec2 is not None:
            h = tl.arange(0, BLOCK_H)
            rec2 = load_up(w_rec2, columns, H, D, BLOCK_H, EVEN_D, dtype, False, PRECISION)
            tl.store(w_rec2_out + h[:, None] * D + columns[None, :], rec2, mask=mask[None, :])
            if tile == 0:
                rec1 = load_rec1(w_rec1, R, H, BLOCK_R, BLOCK_H, dtype, False, PRECISION)
                tl.store(w_rec1_out + r[:, None] * BLOCK_H + h[None, :], rec1)
    else:
        prepare_sums(w_down, b_down, norm_weight, norm_bias, b_down_out, column_sum_out, (tile - TILES) * COLUMNS,
                     dtype, D, R, BLOCK_R, ROWS, COLUMNS, NORM, PRECISION)  # fmt: skip
