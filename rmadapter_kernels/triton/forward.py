"""The forward kernel. One program takes BLOCK_M rows through both branches:

loop 1 over D     pre += x W_down            (LayerNorm's statistics on the way)
in registers      z = sigma(pre)             h = sigma(z W_rec1 + b_rec1)
loop 2 over D     out = residual + scale (z W_up + b_up), rec = h W_rec2 + b_rec2, loss += |u - rec|
                  backwards, so that the tiles of x read last, which are still in cache, come first
"""

import triton
import triton.language as tl

from rmadapter_kernels.triton.primitives import (
    COSINE_EPS,
    activate,
    cosine_terms,
    difference,
    down_projection,
    hidden_projection,
    keep_columns,
    load_columns,
    load_optional,
    load_rec1,
    load_rows,
    load_up,
    nearest,
    normalise,
    row_offsets,
    store_rows,
    target,
    up_projection,
)


@triton.jit(do_not_specialize=["M", "inner", "x_stride0", "x_stride1", "residual_stride0", "residual_stride1",
                               "out_stride0", "out_stride1", "scale", "eps"])  # fmt: skip
def rm_adapter_forward_kernel(
    x, residual, norm_weight, norm_bias, w_down, b_down, w_up, b_up, w_rec1, b_rec1, w_rec2, b_rec2, column_sum, out,
    rec_loss,
    M: tl.int32, inner: tl.int32, x_stride0: tl.int64, x_stride1: tl.int64, residual_stride0: tl.int64,
    residual_stride1: tl.int64,
    out_stride0: tl.int64, out_stride1: tl.int64, scale: tl.float32, eps: tl.float32,
    D: tl.constexpr, R: tl.constexpr, H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr, ACTIVATION: tl.constexpr,
    OBJECTIVE: tl.constexpr, NORM: tl.constexpr, PREPARED: tl.constexpr, UNIT: tl.constexpr, TWO_DIMS: tl.constexpr,
    INDEX64: tl.constexpr, PRECISION: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """out [M, D] and, with w_rec1, rec_loss [M] fp32; absent tensors are None."""
    dtype: tl.constexpr = x.dtype.element_ty
    EVEN_D: tl.constexpr = D % BLOCK_D == 0
    RECONSTRUCT: tl.constexpr = w_rec1 is not None
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = rows < M
    # Beyond M the last row is read again and nothing written: a copy ahead with a mask of rows takes more instructions.
    rows = tl.minimum(rows, M - 1)
    x_rows = row_offsets(rows, inner, x_stride0, x_stride1, UNIT, TWO_DIMS, INDEX64)
    out_rows = row_offsets(rows, inner, out_stride0, out_stride1, UNIT, TWO_DIMS, INDEX64)
    residual_rows = row_offsets(rows, inner, residual_stride0, residual_stride1, UNIT, TWO_DIMS, INDEX64)

    pre, mean, rstd, _bias, _sums = down_projection(
        x, x_rows, None, norm_weight, norm_bias, eps, w_down, b_down, column_sum, D, R, BLOCK_M, BLOCK_D, BLOCK_R,
        STAGES, NORM, PREPARED, PRECISION,
    )  # fmt: skip
    z = nearest(activate(pre, ACTIVATION, dtype).to(dtype), PRECISION)
    if RECONSTRUCT:
        rec1_weight = load_rec1(w_rec1, R, H, BLOCK_R, BLOCK_H, dtype, PREPARED, PRECISION)
        pre_h = hidden_projection(z, rec1_weight, b_rec1, H, BLOCK_H, PRECISION)
        h = nearest(activate(pre_h, ACTIVATION, dtype).to(dtype), PRECISION)
        if OBJECTIVE == "cosine":
            product = tl.zeros([BLOCK_M], tl.float32)
            u_square = tl.zeros([BLOCK_M], tl.float32)
            rec_square = tl.zeros([BLOCK_M], tl.float32)
        else:
            terms = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    TILES: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    for index in tl.range(0, TILES, num_stages=STAGES):
        columns = (TILES - 1 - index) * BLOCK_D + tl.arange(0, BLOCK_D)
        if RECONSTRUCT:
            tile = load_rows(x, x_rows, None, columns, D, EVEN_D, "evict_first")
        if residual is not None:
            kept = load_rows(residual, residual_rows, None, columns, D, EVEN_D, "evict_first")
        weight = load_up(w_up, columns, R, D, BLOCK_R, EVEN_D, dtype, PREPARED, PRECISION)
        value = scale * up_projection(z, weight, load_columns(b_up, columns, D, EVEN_D, THREADS), PRECISION)
        if residual is not None:
            value += kept.to(tl.float32)
        store_rows(out, out_rows, row_mask, columns, value, D, EVEN_D)
        if RECONSTRUCT:
            weight = load_up(w_rec2, columns, H, D, BLOCK_H, EVEN_D, dtype, PREPARED, PRECISION)
            gamma = load_optional(norm_weight, columns, D, EVEN_D)
            beta = load_optional(norm_bias, columns, D, EVEN_D)
            bias = load_columns(b_rec2, columns, D, EVEN_D, THREADS)
            x_hat = normalise(tile, mean, rstd, columns, D, EVEN_D) if NORM else tile.to(tl.float32)
            if OBJECTIVE == "cosine":
                rec = up_projection(h, weight, bias, PRECISION)
                tile_dot, tile_u, tile_rec = cosine_terms(target(x_hat, gamma, beta), rec, columns, D, EVEN_D)
                product += tile_dot
                u_square += tile_u
                rec_square += tile_rec
            else:
                # As it stands: summed from an expanded square, the loss of a good reconstruction would lose 1e-2.
                e = keep_columns(difference(h, weight, bias, x_hat, gamma, beta, PRECISION), columns, D, EVEN_D)
                terms += e * e if OBJECTIVE == "l2" else tl.abs(e)
    if RECONSTRUCT:
        if OBJECTIVE == "cosine":
            u_norm = tl.maximum(tl.sqrt_rn(u_square), COSINE_EPS, tl.PropagateNan.ALL)
            rec_norm = tl.maximum(tl.sqrt_rn(rec_square), COSINE_EPS, tl.PropagateNan.ALL)
            # Two divisions: the product of two norms at their clamp is 1e-16, of two large ones may overflow.
            loss = 1.0 - product / u_norm / rec_norm
        else:
            loss = tl.sum(terms, 1)
        tl.store(rec_loss + rows, loss, mask=row_mask)
