"""K2, the backward kernel of the weights, and K3, which adds its parts.

K2, one program for a tile of D and a chunk of rows: W_down, W_up, W_rec2 and the biases over D; one more tile for the
gradients without D. fp32 parts a chunk, added by K3 in a fixed order: no atomics, two runs are bit-equal.

fp16 cannot hold what carries the loss gradient, and K2 sums over rows, whose factors differ: there it multiplies fp32
operands in tf32, whose mantissa is that of fp16.

With FOLD (LayerNorm, x in 16 bits) no tile of x is normalised for W_down. K1 stores dz times rstd, and with p = x^T dz,
q = mean^T dz and db = (1 / rstd)^T dz over all rows

    dW_down = diag(gamma) (p - 1 q^T) + beta db^T

which K3 forms. In fp32 a large mean would cancel there (K1 shifts x before its product for the same reason).
"""

import triton
import triton.language as tl

from rmadapter_kernels.triton.backward_rows import loss_gradient
from rmadapter_kernels.triton.primitives import (
    load_optional,
    load_rows,
    load_up,
    load_vector,
    nearest,
    normalise,
    row_offsets,
    target,
)


@triton.jit
def sum_operand(tile, sum_dtype: tl.constexpr, PRECISION: tl.constexpr):
    """A tile as an operand of a sum over rows; what comes from 16 bits is exact in tf32."""
    if tile.dtype == tl.float32:
        tile = nearest(tile.to(sum_dtype), PRECISION)
    return tile.to(sum_dtype)


@triton.jit(do_not_specialize=["first_row", "last_row", "first_chunk", "inner", "x_stride0", "x_stride1",
                               "d_out_stride0", "d_out_stride1", "d_loss_stride0", "d_loss_stride1",
                               "chunk_rows"])  # fmt: skip
def rm_adapter_backward_weights_kernel(
    x, d_out, d_loss, norm_weight, norm_bias, w_rec2, b_rec2, z, h, dz, dh, mean, rstd, to_u, to_rec, parts,
    first_row: tl.int32, last_row: tl.int32, first_chunk: tl.int32, inner: tl.int32, x_stride0: tl.int64,
    x_stride1: tl.int64, d_out_stride0: tl.int64, d_out_stride1: tl.int64, d_loss_stride0: tl.int64,
    d_loss_stride1: tl.int64, chunk_rows: tl.int32,
    D: tl.constexpr, R: tl.constexpr, H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr, OBJECTIVE: tl.constexpr, NORM: tl.constexpr,
    FOLD: tl.constexpr, NEED_DOWN: tl.constexpr, NEED_B_DOWN: tl.constexpr, NEED_UP: tl.constexpr,
    NEED_B_UP: tl.constexpr, NEED_REC1: tl.constexpr, NEED_B_REC1: tl.constexpr, NEED_REC2: tl.constexpr,
    NEED_B_REC2: tl.constexpr, PREPARED: tl.constexpr, UNIT: tl.constexpr, TWO_DIMS: tl.constexpr,
    INDEX64: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """K2. Grid: tiles of D and one more, by chunks of the rows from first_row to last_row; ``parts`` [chunks, SIZE]
    fp32, begun at first_chunk, laid out as K3 reads it.

    The gradients of w_up and b_up come without scale and branch_grad_scale, which K3 multiplies.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    sum_dtype: tl.constexpr = tl.float32 if dtype == tl.float16 else dtype
    SUM_PRECISION: tl.constexpr = "tf32" if dtype == tl.float16 else PRECISION
    EVEN_D: tl.constexpr = D % BLOCK_D == 0
    SIZE: tl.constexpr = (2 * R + H + 2) * D + (R + 1) * H + 2 * R
    NEED_E: tl.constexpr = NEED_REC2 or NEED_B_REC2
    tile_index = tl.program_id(0)
    r = tl.arange(0, BLOCK_R)
    h_columns = tl.arange(0, BLOCK_H)
    parts += (first_chunk + tl.program_id(1)).to(tl.int64) * SIZE
    first = first_row + tl.program_id(1) * chunk_rows
    last = tl.minimum(first + chunk_rows, last_row)
    if tile_index < (D + BLOCK_D - 1) // BLOCK_D:
        columns = tile_index * BLOCK_D + tl.arange(0, BLOCK_D)
        d_mask = columns < D
        d_down = tl.zeros([BLOCK_D, BLOCK_R], tl.float32)
        d_up = tl.zeros([BLOCK_D, BLOCK_R], tl.float32)
        d_rec2 = tl.zeros([BLOCK_D, BLOCK_H], tl.float32)
        # Elementwise until the loop ends, then one reduction each.
        d_out_terms = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        e_terms = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        if NEED_E:
            weight = load_up(w_rec2, columns, H, D, BLOCK_H, EVEN_D, dtype, PREPARED, PRECISION)
        gamma = load_optional(norm_weight, columns, D, EVEN_D)
        beta = load_optional(norm_bias, columns, D, EVEN_D)
        if NEED_E:
            bias = load_vector(b_rec2, columns, D, EVEN_D)
        for start in tl.range(first, last, BLOCK_M, num_stages=STAGES):
            rows = start + tl.arange(0, BLOCK_M)
            row_mask = rows < last
            index_rows = rows.to(tl.int64) if INDEX64 else rows
            if NEED_DOWN or NEED_E:
                x_rows = row_offsets(rows, inner, x_stride0, x_stride1, UNIT, TWO_DIMS, INDEX64)
                tile = load_rows(x, x_rows, row_mask, columns, D, EVEN_D, "evict_first")
                if NORM and (NEED_E or not FOLD):
                    row_mean = tl.load(mean + rows, mask=row_mask, other=0.0)
                    row_rstd = tl.load(rstd + rows, mask=row_mask, other=0.0)
                    x_hat = normalise(tile, row_mean, row_rstd, columns, D, EVEN_D)
                else:
                    x_hat = tile.to(tl.float32)
            if NEED_DOWN:
                own_dz = tl.load(dz + index_rows[:, None] * BLOCK_R + r[None, :], mask=row_mask[:, None], other=0.0)
                own_dz = sum_operand(own_dz, sum_dtype, SUM_PRECISION)
                if NORM and not FOLD:
                    operand = sum_operand(target(x_hat, gamma, beta), sum_dtype, SUM_PRECISION)
                else:
                    operand = sum_operand(tile, sum_dtype, SUM_PRECISION)
                d_down = tl.dot(tl.trans(operand), own_dz, d_down, input_precision=SUM_PRECISION)
            if NEED_UP or NEED_B_UP:
                d_out_rows = row_offsets(rows, inner, d_out_stride0, d_out_stride1, UNIT, TWO_DIMS, INDEX64)
                gradient = load_rows(d_out, d_out_rows, row_mask, columns, D, EVEN_D, "evict_first")
                if NEED_UP:
                    own_z = tl.load(z + index_rows[:, None] * BLOCK_R + r[None, :], mask=row_mask[:, None], other=0.0)
                    if d_out.dtype.element_ty == tl.float32:
                        own_z = sum_operand(own_z, sum_dtype, SUM_PRECISION)
                        operand = sum_operand(gradient, sum_dtype, SUM_PRECISION)
                        d_up = tl.dot(tl.trans(operand), own_z, d_up, input_precision=SUM_PRECISION)
                    else:
                        d_up = tl.dot(tl.trans(gradient), own_z, d_up)
                if NEED_B_UP:
                    d_out_terms += gradient.to(tl.float32)
            if NEED_E:
                loss_rows = row_offsets(rows, inner, d_loss_stride0, d_loss_stride1, 1, TWO_DIMS, INDEX64)
                dl = tl.load(d_loss + loss_rows, mask=row_mask, other=0.0)
                factor = 2.0 * dl if OBJECTIVE == "l2" else dl
                own_to_u = factor
                own_to_rec = factor
                if OBJECTIVE == "cosine":
                    own_to_u = tl.load(to_u + rows, mask=row_mask, other=0.0)
                    own_to_rec = tl.load(to_rec + rows, mask=row_mask, other=0.0)
                own_h = tl.load(
                    h + index_rows[:, None] * BLOCK_H + h_columns[None, :], mask=row_mask[:, None], other=0.0
                )
                e, _t = loss_gradient(nearest(own_h, PRECISION), weight, bias, x_hat, gamma, beta, own_to_u, own_to_rec,
                                      own_to_rec, columns, OBJECTIVE, D, EVEN_D, PRECISION)  # fmt: skip
                if NEED_B_REC2:
                    # Rows that are masked have a factor of zero.
                    e_terms += factor[:, None] * e
                if NEED_REC2:
                    # The sum is over tokens, so the loss gradient goes to h.
                    scaled = sum_operand((factor[:, None] * own_h.to(tl.float32)), sum_dtype, SUM_PRECISION)
                    e = sum_operand(e, sum_dtype, SUM_PRECISION)
                    d_rec2 = tl.dot(tl.trans(e), scaled, d_rec2, input_precision=SUM_PRECISION)
        r_mask = d_mask[:, None] & (r < R)[None, :]
        h_mask = d_mask[:, None] & (h_columns < H)[None, :]
        if NEED_DOWN:
            tl.store(parts + columns[:, None] * R + r[None, :], d_down, mask=r_mask)
        if NEED_UP:
            tl.store(parts + R * D + r[None, :] * D + columns[:, None], d_up, mask=r_mask)
        if NEED_REC2:
            tl.store(parts + 2 * R * D + h_columns[None, :] * D + columns[:, None], d_rec2, mask=h_mask)
        if NEED_B_UP:
            tl.store(parts + (2 * R + H) * D + columns, tl.sum(d_out_terms, 0), mask=d_mask)
        if NEED_B_REC2:
            tl.store(parts + (2 * R + H + 1) * D + columns, tl.sum(e_terms, 0), mask=d_mask)
    else:
        parts += (2 * R + H + 2) * D
        d_rec1 = tl.zeros([BLOCK_R, BLOCK_H], tl.float32)
        dz_terms = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
        mean_terms = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
        dh_terms = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
        for start in tl.range(first, last, BLOCK_M, num_stages=STAGES):
            rows = start + tl.arange(0, BLOCK_M)
            row_mask = rows < last
            index_rows = rows.to(tl.int64) if INDEX64 else rows
            if NEED_B_DOWN or (FOLD and NEED_DOWN):
                own_dz = tl.load(dz + index_rows[:, None] * BLOCK_R + r[None, :], mask=row_mask[:, None], other=0.0)
                own_dz = own_dz.to(tl.float32)
                if FOLD:
                    row_mean = tl.load(mean + rows, mask=row_mask, other=0.0)
                    row_rstd = tl.load(rstd + rows, mask=row_mask, other=1.0)
                    # The same operand as in p, or a large mean would not cancel.
                    mean_terms += row_mean[:, None] * nearest(own_dz, SUM_PRECISION)
                    own_dz = own_dz / row_rstd[:, None]
                dz_terms += own_dz
            if NEED_REC1 or NEED_B_REC1:
                own_dh = tl.load(
                    dh + index_rows[:, None] * BLOCK_H + h_columns[None, :], mask=row_mask[:, None], other=0.0
                )
                if NEED_REC1:
                    own_z = tl.load(z + index_rows[:, None] * BLOCK_R + r[None, :], mask=row_mask[:, None], other=0.0)
                    own_z = sum_operand(own_z, sum_dtype, SUM_PRECISION)
                    operand = sum_operand(own_dh, sum_dtype, SUM_PRECISION)
                    d_rec1 = tl.dot(tl.trans(own_z), operand, d_rec1, input_precision=SUM_PRECISION)
                if NEED_B_REC1:
                    dh_terms += own_dh.to(tl.float32)
        if NEED_REC1:
            mask = (r < R)[:, None] & (h_columns < H)[None, :]
            tl.store(parts + r[:, None] * H + h_columns[None, :], d_rec1, mask=mask)
        if NEED_B_DOWN or (FOLD and NEED_DOWN):
            tl.store(parts + R * H + r, tl.sum(dz_terms, 0), mask=r < R)
        if FOLD and NEED_DOWN:
            tl.store(parts + R * H + R + H + r, tl.sum(mean_terms, 0), mask=r < R)
        if NEED_B_REC1:
            tl.store(parts + R * H + R + h_columns, tl.sum(dh_terms, 0), mask=h_columns < H)


@triton.jit
def load_parts(parts, places, mask, start, chunks, SIZE: tl.constexpr, CHUNKS: tl.constexpr):
    """parts[start:start + CHUNKS, places], [CHUNKS, BLOCK]; zero beyond the last chunk."""
    chunk = start + tl.arange(0, CHUNKS)
    address = parts + (chunk.to(tl.int64)[:, None] * SIZE + places[None, :])
    return tl.load(address, mask=(chunk < chunks)[:, None] & mask[None, :], other=0.0)


@triton.jit
def add_parts(parts, gradient, factor, chunks, block, SIZE: tl.constexpr, OFFSET: tl.constexpr, COUNT: tl.constexpr,
              BLOCK: tl.constexpr, CHUNKS: tl.constexpr):  # fmt: skip
    """A block of ``gradient`` [COUNT] = factor times the sum over chunks of parts[:, OFFSET:OFFSET + COUNT]."""
    places = block * BLOCK + tl.arange(0, BLOCK)
    mask = places < COUNT
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, chunks, CHUNKS):
        total += tl.sum(load_parts(parts, OFFSET + places, mask, start, chunks, SIZE, CHUNKS), 0)
    tl.store(gradient + places, (factor * total).to(gradient.dtype.element_ty), mask=mask)


@triton.jit
def add_folded_parts(parts, gradient, norm_weight, norm_bias, chunks, block, SIZE: tl.constexpr, D: tl.constexpr,
                     R: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr):  # fmt: skip
    """A block of the gradient of W_down [D, R] from x^T dz and the sums over rows, as the head of this file says."""
    SMALL: tl.constexpr = (2 * R + H + 2) * D
    places = block * BLOCK + tl.arange(0, BLOCK)
    mask = places < D * R
    d = places // R
    r = places % R
    total = tl.zeros([BLOCK], tl.float32)
    db_down = tl.zeros([BLOCK], tl.float32)
    for start in range(0, chunks, CHUNKS):
        p = load_parts(parts, places, mask, start, chunks, SIZE, CHUNKS)
        q = load_parts(parts, SMALL + R * H + R + H + r, mask, start, chunks, SIZE, CHUNKS)
        total += tl.sum(p - q, 0)
        if norm_bias is not None:
            db_down += tl.sum(load_parts(parts, SMALL + R * H + r, mask, start, chunks, SIZE, CHUNKS), 0)
    if norm_weight is not None:
        total *= tl.load(norm_weight + d, mask=mask, other=0.0).to(tl.float32)
    if norm_bias is not None:
        total += tl.load(norm_bias + d, mask=mask, other=0.0).to(tl.float32) * db_down
    tl.store(gradient + places, total.to(gradient.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["chunks", "up_factor"])
def rm_adapter_backward_sum_kernel(
    dw_down, db_down, dw_up, db_up, dw_rec1, db_rec1, dw_rec2, db_rec2, norm_weight, norm_bias, parts,
    chunks: tl.int32, up_factor: tl.float32,
    D: tl.constexpr, R: tl.constexpr, H: tl.constexpr, FOLD: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """K3. Grid: the blocks of all eight gradients one after the other (``sum_blocks``); None where nobody needs it."""
    SIZE: tl.constexpr = (2 * R + H + 2) * D + (R + 1) * H + 2 * R
    SMALL: tl.constexpr = (2 * R + H + 2) * D
    # The first block behind each gradient's own.
    DOWN: tl.constexpr = (D * R + BLOCK - 1) // BLOCK
    UP: tl.constexpr = DOWN + (D * R + BLOCK - 1) // BLOCK
    REC2: tl.constexpr = UP + (D * H + BLOCK - 1) // BLOCK
    B_UP: tl.constexpr = REC2 + (D + BLOCK - 1) // BLOCK
    B_REC2: tl.constexpr = B_UP + (D + BLOCK - 1) // BLOCK
    REC1: tl.constexpr = B_REC2 + (R * H + BLOCK - 1) // BLOCK
    B_DOWN: tl.constexpr = REC1 + (R + BLOCK - 1) // BLOCK
    block = tl.program_id(0)
    if block < DOWN:
        if dw_down is not None:
            if FOLD:
                add_folded_parts(parts, dw_down, norm_weight, norm_bias, chunks, block, SIZE, D, R, H, BLOCK, CHUNKS)
            else:
                add_parts(parts, dw_down, 1.0, chunks, block, SIZE, 0, D * R, BLOCK, CHUNKS)
    elif block < UP:
        if dw_up is not None:
            add_parts(parts, dw_up, up_factor, chunks, block - DOWN, SIZE, R * D, R * D, BLOCK, CHUNKS)
    elif block < REC2:
        if dw_rec2 is not None:
            add_parts(parts, dw_rec2, 1.0, chunks, block - UP, SIZE, 2 * R * D, H * D, BLOCK, CHUNKS)
    elif block < B_UP:
        if db_up is not None:
            add_parts(parts, db_up, up_factor, chunks, block - REC2, SIZE, (2 * R + H) * D, D, BLOCK, CHUNKS)
    elif block < B_REC2:
        if db_rec2 is not None:
            add_parts(parts, db_rec2, 1.0, chunks, block - B_UP, SIZE, (2 * R + H + 1) * D, D, BLOCK, CHUNKS)
    elif block < REC1:
        if dw_rec1 is not None:
            add_parts(parts, dw_rec1, 1.0, chunks, block - B_REC2, SIZE, SMALL, R * H, BLOCK, CHUNKS)
    elif block < B_DOWN:
        if db_down is not None:
            add_parts(parts, db_down, 1.0, chunks, block - REC1, SIZE, SMALL + R * H, R, BLOCK, CHUNKS)
    else:
        if db_rec1 is not None:
            add_parts(parts, db_rec1, 1.0, chunks, block - B_DOWN, SIZE, SMALL + R * H + R, H, BLOCK, CHUNKS)


def sum_blocks(d: int, r: int, h: int, block: int) -> int:
    """Programs of K3."""
    return sum(-(-size // block) for size in (d * r, r * d, h * d, d, d, r * h, r, h))
