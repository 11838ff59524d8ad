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
    down_projection,
    hidden_projection,
    load_rows,
    loss_terms,
    normalise,
    row_offsets,
    store_rows,
    up_projection,
)


@triton.jit(do_not_specialize=["M", "inner", "x_stride0", "x_stride1", "residual_stride0", "residual_stride1",
                               "out_stride0", "out_stride1", "scale", "eps"])  # fmt: skip
def rm_adapter_forward_kernel(
    x, residual, norm_weight, norm_bias, w_down, b_down, w_up, b_up, w_rec1, b_rec1, w_rec2, b_rec2, out, rec_loss,
    M: tl.int32, inner: tl.int32, x_stride0: tl.int64, x_stride1: tl.int64, residual_stride0: tl.int64,
    residual_stride1: tl.int64,
    out_stride0: tl.int64, out_stride1: tl.int64, scale: tl.float32, eps: tl.float32,
    D: tl.constexpr, R: tl.constexpr, H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ACTIVATION: tl.constexpr, OBJECTIVE: tl.constexpr,
    RECONSTRUCT: tl.constexpr, NORM: tl.constexpr, UNIT: tl.constexpr, TWO_DIMS: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """out [M, D] and, with RECONSTRUCT, rec_loss [M] fp32; absent tensors are None."""
    dtype: tl.constexpr = x.dtype.element_ty
    EVEN_D: tl.constexpr = D % BLOCK_D == 0
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = rows < M
    x_rows = row_offsets(rows, inner, x_stride0, x_stride1, UNIT, TWO_DIMS, WIDE)
    out_rows = row_offsets(rows, inner, out_stride0, out_stride1, UNIT, TWO_DIMS, WIDE)
    residual_rows = row_offsets(rows, inner, residual_stride0, residual_stride1, UNIT, TWO_DIMS, WIDE)

    pre, mean, rstd, _centred, _column_sum = down_projection(
        x, x_rows, row_mask, norm_weight, norm_bias, eps, w_down, b_down, D, R, BLOCK_M, BLOCK_D, BLOCK_R, NORM,
        PRECISION,
    )  # fmt: skip
    z = activate(pre, ACTIVATION).to(dtype)
    if RECONSTRUCT:
        h = activate(hidden_projection(z, w_rec1, b_rec1, R, H, BLOCK_R, BLOCK_H, PRECISION), ACTIVATION).to(dtype)
        loss = tl.zeros([BLOCK_M], tl.float32)
        x_square = tl.zeros([BLOCK_M], tl.float32)
        rec_square = tl.zeros([BLOCK_M], tl.float32)

    TILES: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    for index in range(TILES):
        columns = (TILES - 1 - index) * BLOCK_D + tl.arange(0, BLOCK_D)
        if RECONSTRUCT:
            # Before out is written: x may be the residual of a call in place.
            tile = load_rows(x, x_rows, row_mask, columns, D, EVEN_D, "evict_first")
        base = scale * up_projection(z, w_up, b_up, columns, R, D, BLOCK_R, EVEN_D, PRECISION)
        if residual is not None:
            base += load_rows(residual, residual_rows, row_mask, columns, D, EVEN_D, "evict_first").to(tl.float32)
        store_rows(out, out_rows, row_mask, columns, base, D, EVEN_D)
        if RECONSTRUCT:
            rec = up_projection(h, w_rec2, b_rec2, columns, H, D, BLOCK_H, EVEN_D, PRECISION)
            u = tile.to(tl.float32)
            if NORM:
                _x_hat, u = normalise(tile, mean, rstd, norm_weight, norm_bias, columns, D, EVEN_D)
            if OBJECTIVE == "cosine":
                tile_dot, tile_x, tile_rec = cosine_terms(u, rec, columns, D, EVEN_D)
                loss += tile_dot
                x_square += tile_x
                rec_square += tile_rec
            else:
                loss += loss_terms(u, rec, columns, OBJECTIVE, D, EVEN_D)
    if RECONSTRUCT:
        if OBJECTIVE == "cosine":
            x_norm = tl.maximum(tl.sqrt_rn(x_square), COSINE_EPS, tl.PropagateNan.ALL)
            rec_norm = tl.maximum(tl.sqrt_rn(rec_square), COSINE_EPS, tl.PropagateNan.ALL)
            # Two divisions: the product of two norms at their clamp is 1e-16, of two large ones may overflow.
            loss = 1.0 - loss / x_norm / rec_norm
        tl.store(rec_loss + rows, loss, mask=row_mask)
