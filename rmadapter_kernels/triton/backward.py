"""The backward kernels: gradients of the rows, of the weights, and the sum of the weights' parts.

K1, one program for BLOCK_M rows; writes dx and the small tensors that K2 takes (z, h, dz, dh, LayerNorm's statistics,
coefficients of the cosine), all of them [M, BLOCK_R or BLOCK_H] or [M]:

    loop 1 over D     pre += x W_down                         loop 2 over D   dz_b += d_out W_up^T
    loop 3 over D     dh += e W_rec2^T                        (the cosine first needs a pass for its norms)
    in registers      dz_r = dh W_rec1^T, v, dz
    loop 4 over D     dx = v W_down^T (+ t), LayerNorm's backward; reads x again for LayerNorm and for t

K2, one program for a tile of D and a chunk of rows: W_down, W_up, W_rec2 and the biases over D; one more tile for the
gradients without D. fp32 parts a chunk, added by K3 in a fixed order: no atomics, two runs are bit-equal.

``scale`` and the gradient of the loss multiply after products with raw d_out and e. Where a bottleneck gradient must be
rounded to fp16, whose range would lose it, each row is first divided by its largest value (``split_rows``); K2, which
sums over rows, multiplies fp32 operands in tf32 instead, whose mantissa is that of fp16.
"""

import triton
import triton.language as tl

from rmadapter_kernels.triton.primitives import (
    COSINE_EPS,
    activate,
    activate_backward,
    cosine_terms,
    down_projection,
    down_weight,
    hidden_projection,
    keep_columns,
    load_matrix,
    load_rows,
    load_vector,
    normalise,
    row_offsets,
    store_rows,
    up_projection,
)


@triton.jit
def split_rows(value, dtype: tl.constexpr):
    """``value`` [M, N] as a tile in ``dtype`` and an fp32 factor [M] for the product's rows."""
    if dtype == tl.float16:
        largest = tl.max(tl.abs(value), 1)
        factor = tl.where((largest > 0.0) & (largest < float("inf")), largest, 1.0)
        value = value / factor[:, None]
    else:
        factor = tl.full([value.shape[0]], 1.0, tl.float32)
    return value.to(dtype), factor


@triton.jit
def loss_gradient(u, rec, to_u, to_rec, columns, OBJECTIVE: tl.constexpr, D: tl.constexpr, EVEN_D: tl.constexpr):
    """Gradient of the loss to ``rec`` over one tile, in fp32, for a loss gradient of one; zero beyond D.

    For l2 it is half of it: the factor of two goes to the sum. ``to_u`` and ``to_rec`` [M] are the cosine's
    coefficients.
    """
    if OBJECTIVE == "cosine":
        e = to_u[:, None] * u + to_rec[:, None] * rec
    else:
        e = rec - u
        if OBJECTIVE == "l1":
            e = tl.where(e > 0.0, 1.0, 0.0) - tl.where(e < 0.0, 1.0, 0.0)
    return keep_columns(e, columns, D, EVEN_D)


@triton.jit
def target_tile(tile, mean, rstd, norm_weight, norm_bias, columns, D: tl.constexpr, EVEN_D: tl.constexpr,
                NORM: tl.constexpr):  # fmt: skip
    """The reconstruction's target in fp32: the normalised tile or the tile itself."""
    if NORM:
        _x_hat, u = normalise(tile, mean, rstd, norm_weight, norm_bias, columns, D, EVEN_D)
    else:
        u = tile.to(tl.float32)
    return u


@triton.jit(do_not_specialize=["M", "inner", "x_stride0", "x_stride1", "d_out_stride0", "d_out_stride1",
                               "d_loss_stride0", "d_loss_stride1", "dx_stride0", "dx_stride1", "scale",
                               "branch_grad_scale", "eps"])  # fmt: skip
def rm_adapter_backward_rows_kernel(
    x, d_out, d_loss, norm_weight, norm_bias, w_down, b_down, w_up, w_rec1, b_rec1, w_rec2, b_rec2,
    dx, z_out, h_out, dz_out, dh_out, mean_out, rstd_out, to_u_out, to_rec_out,
    M: tl.int32, inner: tl.int32, x_stride0: tl.int64, x_stride1: tl.int64, d_out_stride0: tl.int64,
    d_out_stride1: tl.int64, d_loss_stride0: tl.int64, d_loss_stride1: tl.int64, dx_stride0: tl.int64,
    dx_stride1: tl.int64, scale: tl.float32, branch_grad_scale: tl.float32, eps: tl.float32,
    D: tl.constexpr, R: tl.constexpr, H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ACTIVATION: tl.constexpr, OBJECTIVE: tl.constexpr,
    LOCAL: tl.constexpr, NORM: tl.constexpr, UNIT: tl.constexpr, TWO_DIMS: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """K1. d_out or d_loss is None where that result was not used, every output where nobody needs it."""
    dtype: tl.constexpr = x.dtype.element_ty
    EVEN_D: tl.constexpr = D % BLOCK_D == 0
    EVEN_R: tl.constexpr = R == BLOCK_R
    EVEN_H: tl.constexpr = H == BLOCK_H
    NEED_V: tl.constexpr = dx is not None
    NEED_DZ: tl.constexpr = dz_out is not None
    # The reconstruction's gradient reaches dx only without the local cut.
    LOSS_TO_X: tl.constexpr = NEED_V and not LOCAL and d_loss is not None
    NEED_DH: tl.constexpr = d_loss is not None and (NEED_DZ or LOSS_TO_X or dh_out is not None)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = rows < M
    r = tl.arange(0, BLOCK_R)
    h_columns = tl.arange(0, BLOCK_H)
    wide_rows = rows.to(tl.int64) if WIDE else rows
    z_rows = wide_rows[:, None] * BLOCK_R + r[None, :]
    h_rows = wide_rows[:, None] * BLOCK_H + h_columns[None, :]
    x_rows = row_offsets(rows, inner, x_stride0, x_stride1, UNIT, TWO_DIMS, WIDE)

    pre, mean, rstd, centred, column_sum = down_projection(
        x, x_rows, row_mask, norm_weight, norm_bias, eps, w_down, b_down, D, R, BLOCK_M, BLOCK_D, BLOCK_R, NORM,
        PRECISION,
    )  # fmt: skip
    z = activate(pre, ACTIVATION).to(dtype)
    if z_out is not None:
        tl.store(z_out + z_rows, z, mask=row_mask[:, None])
    if NORM and mean_out is not None:
        tl.store(mean_out + rows, mean, mask=row_mask)
        tl.store(rstd_out + rows, rstd, mask=row_mask)

    dz_base = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    if d_out is not None and (NEED_V or NEED_DZ):
        d_out_rows = row_offsets(rows, inner, d_out_stride0, d_out_stride1, UNIT, TWO_DIMS, WIDE)
        for start in range(0, D, BLOCK_D):
            columns = start + tl.arange(0, BLOCK_D)
            gradient = load_rows(d_out, d_out_rows, row_mask, columns, D, EVEN_D, "")
            weight = load_matrix(w_up, r, columns, R, D, EVEN_R, EVEN_D)
            if dtype == tl.float16 and d_out.dtype.element_ty == tl.float32:
                # An fp32 gradient may lie below what fp16 holds.
                dz_base = tl.dot(gradient, tl.trans(weight).to(tl.float32), dz_base, input_precision="tf32")
            else:
                weight = tl.trans(weight.to(dtype))
                dz_base = tl.dot(gradient.to(dtype), weight, dz_base, input_precision=PRECISION)
        dz_base = keep_columns(scale * dz_base, r, R, EVEN_R)

    dz_rec = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    to_u = tl.zeros([BLOCK_M], tl.float32)
    to_rec = tl.zeros([BLOCK_M], tl.float32)
    to_x = tl.zeros([BLOCK_M], tl.float32)
    d_hat_sum = tl.zeros([BLOCK_M], tl.float32)
    d_hat_dot = tl.zeros([BLOCK_M], tl.float32)
    if d_loss is not None:
        pre_h = hidden_projection(z, w_rec1, b_rec1, R, H, BLOCK_R, BLOCK_H, PRECISION)
        h = activate(pre_h, ACTIVATION).to(dtype)
        if h_out is not None:
            tl.store(h_out + h_rows, h, mask=row_mask[:, None])
        loss_rows = row_offsets(rows, inner, d_loss_stride0, d_loss_stride1, 1, TWO_DIMS, WIDE)
        dl = tl.load(d_loss + loss_rows, mask=row_mask, other=0.0)
        factor = 2.0 * dl if OBJECTIVE == "l2" else dl
        if OBJECTIVE == "cosine" and (NEED_DH or to_u_out is not None):
            product = tl.zeros([BLOCK_M], tl.float32)
            u_square = tl.zeros([BLOCK_M], tl.float32)
            rec_square = tl.zeros([BLOCK_M], tl.float32)
            for start in range(0, D, BLOCK_D):
                columns = start + tl.arange(0, BLOCK_D)
                tile = load_rows(x, x_rows, row_mask, columns, D, EVEN_D, "")
                u = target_tile(tile, mean, rstd, norm_weight, norm_bias, columns, D, EVEN_D, NORM)
                rec = up_projection(h, w_rec2, b_rec2, columns, H, D, BLOCK_H, EVEN_D, PRECISION)
                tile_dot, tile_u, tile_rec = cosine_terms(u, rec, columns, D, EVEN_D)
                product += tile_dot
                u_square += tile_u
                rec_square += tile_rec
            u_norm = tl.maximum(tl.sqrt_rn(u_square), COSINE_EPS, tl.PropagateNan.ALL)
            rec_norm = tl.maximum(tl.sqrt_rn(rec_square), COSINE_EPS, tl.PropagateNan.ALL)
            cosine = product / u_norm / rec_norm
            to_u = -1.0 / u_norm / rec_norm
            # Below the clamp the norm is a constant and its own term is gone.
            to_rec = tl.where(tl.sqrt_rn(rec_square) < COSINE_EPS, 0.0, cosine / rec_norm / rec_norm)
            to_x = tl.where(tl.sqrt_rn(u_square) < COSINE_EPS, 0.0, cosine / u_norm / u_norm)
            if to_u_out is not None:
                tl.store(to_u_out + rows, to_u, mask=row_mask)
                tl.store(to_rec_out + rows, to_rec, mask=row_mask)
        if NEED_DH:
            dh = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
            TILES: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
            for index in range(TILES):
                columns = (TILES - 1 - index) * BLOCK_D + tl.arange(0, BLOCK_D)
                tile = load_rows(x, x_rows, row_mask, columns, D, EVEN_D, "")
                weight = load_matrix(w_rec2, h_columns, columns, H, D, EVEN_H, EVEN_D).to(dtype)
                rec = tl.dot(h, weight, input_precision=PRECISION)
                rec += load_vector(b_rec2, columns, D, EVEN_D)[None, :]
                if NORM:
                    x_hat, u = normalise(tile, mean, rstd, norm_weight, norm_bias, columns, D, EVEN_D)
                else:
                    u = tile.to(tl.float32)
                    x_hat = u
                e = loss_gradient(u, rec, to_u, to_rec, columns, OBJECTIVE, D, EVEN_D)
                dh = tl.dot(e.to(dtype), tl.trans(weight), dh, input_precision=PRECISION)
                if NORM and LOSS_TO_X:
                    t = -e
                    if OBJECTIVE == "cosine":
                        t = keep_columns(to_u[:, None] * rec + to_x[:, None] * u, columns, D, EVEN_D)
                    if norm_weight is not None:
                        t = t * load_vector(norm_weight, columns, D, EVEN_D)[None, :]
                    d_hat_sum += tl.sum(t, 1)
                    d_hat_dot += tl.sum(t * x_hat, 1)
            d_hat_sum = factor * d_hat_sum
            d_hat_dot = factor * d_hat_dot
            # Without the loss gradient, whose size may be anything, until after the product.
            dh = keep_columns(activate_backward(dh, pre_h, ACTIVATION), h_columns, H, EVEN_H)
            if dh_out is not None:
                tl.store(dh_out + h_rows, (factor[:, None] * dh).to(dh_out.dtype.element_ty), mask=row_mask[:, None])
            narrow_dh, dh_factor = split_rows(dh, dtype)
            rec1_weight = load_matrix(w_rec1, r, h_columns, R, H, EVEN_R, EVEN_H).to(dtype)
            dz_rec = tl.dot(narrow_dh, tl.trans(rec1_weight), input_precision=PRECISION)
            dz_rec = keep_columns((factor * dh_factor)[:, None] * dz_rec, r, R, EVEN_R)

    if NEED_DZ:
        dz = activate_backward(branch_grad_scale * dz_base + dz_rec, pre, ACTIVATION)
        dz = keep_columns(dz, r, R, EVEN_R)
        tl.store(dz_out + z_rows, dz.to(dz_out.dtype.element_ty), mask=row_mask[:, None])
    if NEED_V:
        v = dz_base if LOCAL else dz_base + dz_rec
        v = keep_columns(activate_backward(v, pre, ACTIVATION), r, R, EVEN_R)
        narrow, row_factor = split_rows(v, dtype)
        if NORM:
            # The two row sums of LayerNorm's backward come from the bottleneck, with no further pass over D.
            rounded = row_factor[:, None] * narrow.to(tl.float32)
            d_hat_sum = (d_hat_sum + tl.sum(rounded * column_sum[None, :], 1)) / D
            d_hat_dot = (d_hat_dot + tl.sum(keep_columns(rounded * centred, r, R, EVEN_R), 1)) / D
        dx_rows = row_offsets(rows, inner, dx_stride0, dx_stride1, UNIT, TWO_DIMS, WIDE)
        for start in range(0, D, BLOCK_D):
            columns = start + tl.arange(0, BLOCK_D)
            if NORM or LOSS_TO_X:
                tile = load_rows(x, x_rows, row_mask, columns, D, EVEN_D, "evict_first")
            weight = down_weight(w_down, norm_weight, columns, r, dtype, D, R, EVEN_D, EVEN_R)
            gradient = row_factor[:, None] * tl.dot(narrow, tl.trans(weight), input_precision=PRECISION)
            if NORM:
                x_hat, u = normalise(tile, mean, rstd, norm_weight, norm_bias, columns, D, EVEN_D)
            elif LOSS_TO_X:
                u = tile.to(tl.float32)
            if LOSS_TO_X:
                rec = up_projection(h, w_rec2, b_rec2, columns, H, D, BLOCK_H, EVEN_D, PRECISION)
                if OBJECTIVE == "cosine":
                    t = to_u[:, None] * rec + to_x[:, None] * u
                else:
                    t = -loss_gradient(u, rec, to_u, to_rec, columns, OBJECTIVE, D, EVEN_D)
                if norm_weight is not None:
                    t = t * load_vector(norm_weight, columns, D, EVEN_D)[None, :]
                gradient += factor[:, None] * t
            if NORM:
                gradient = rstd[:, None] * (gradient - d_hat_sum[:, None] - x_hat * d_hat_dot[:, None])
            store_rows(dx, dx_rows, row_mask, columns, gradient, D, EVEN_D)


@triton.jit(do_not_specialize=["M", "inner", "x_stride0", "x_stride1", "d_out_stride0", "d_out_stride1",
                               "d_loss_stride0", "d_loss_stride1", "chunk_rows"])  # fmt: skip
def rm_adapter_backward_weights_kernel(
    x, d_out, d_loss, norm_weight, norm_bias, w_rec2, b_rec2, z_in, h_in, dz_in, dh_in, mean_in, rstd_in, to_u_in,
    to_rec_in, parts,
    M: tl.int32, inner: tl.int32, x_stride0: tl.int64, x_stride1: tl.int64, d_out_stride0: tl.int64,
    d_out_stride1: tl.int64, d_loss_stride0: tl.int64, d_loss_stride1: tl.int64, chunk_rows: tl.int32,
    D: tl.constexpr, R: tl.constexpr, H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, OBJECTIVE: tl.constexpr, NORM: tl.constexpr,
    NEED_DOWN: tl.constexpr, NEED_B_DOWN: tl.constexpr, NEED_UP: tl.constexpr, NEED_B_UP: tl.constexpr,
    NEED_REC1: tl.constexpr, NEED_B_REC1: tl.constexpr, NEED_REC2: tl.constexpr, NEED_B_REC2: tl.constexpr,
    UNIT: tl.constexpr, TWO_DIMS: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """K2. Grid: tiles of D and one more, by chunks of rows; ``parts`` [chunks, SIZE] fp32, layout in ``part_offsets``.

    The gradients of w_up and b_up come without scale and branch_grad_scale, which K3 multiplies.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    # fp16 cannot hold what carries the loss gradient: there fp32 operands, in tf32.
    wide: tl.constexpr = tl.float32 if dtype == tl.float16 else dtype
    WIDE_PRECISION: tl.constexpr = "tf32" if dtype == tl.float16 else PRECISION
    EVEN_D: tl.constexpr = D % BLOCK_D == 0
    SIZE: tl.constexpr = (2 * R + H + 2) * D + (R + 1) * H + R
    NEED_E: tl.constexpr = NEED_REC2 or NEED_B_REC2
    tile_index = tl.program_id(0)
    r = tl.arange(0, BLOCK_R)
    h_columns = tl.arange(0, BLOCK_H)
    parts += tl.program_id(1).to(tl.int64) * SIZE
    first = tl.program_id(1) * chunk_rows
    last = tl.minimum(first + chunk_rows, M)
    if tile_index < (D + BLOCK_D - 1) // BLOCK_D:
        columns = tile_index * BLOCK_D + tl.arange(0, BLOCK_D)
        d_mask = columns < D
        d_down = tl.zeros([BLOCK_D, BLOCK_R], tl.float32)
        d_up = tl.zeros([BLOCK_D, BLOCK_R], tl.float32)
        d_rec2 = tl.zeros([BLOCK_D, BLOCK_H], tl.float32)
        db_up = tl.zeros([BLOCK_D], tl.float32)
        db_rec2 = tl.zeros([BLOCK_D], tl.float32)
        if NEED_E:
            weight = load_matrix(w_rec2, h_columns, columns, H, D, H == BLOCK_H, EVEN_D).to(dtype)
            bias = load_vector(b_rec2, columns, D, EVEN_D)
        for start in range(first, last, BLOCK_M):
            rows = start + tl.arange(0, BLOCK_M)
            row_mask = rows < last
            wide_rows = rows.to(tl.int64) if WIDE else rows
            if NEED_DOWN or NEED_E:
                x_rows = row_offsets(rows, inner, x_stride0, x_stride1, UNIT, TWO_DIMS, WIDE)
                tile = load_rows(x, x_rows, row_mask, columns, D, EVEN_D, "evict_first")
                u = tile.to(tl.float32)
                if NORM:
                    mean = tl.load(mean_in + rows, mask=row_mask, other=0.0)
                    rstd = tl.load(rstd_in + rows, mask=row_mask, other=0.0)
                    _x_hat, u = normalise(tile, mean, rstd, norm_weight, norm_bias, columns, D, EVEN_D)
            if NEED_DOWN:
                dz = tl.load(dz_in + wide_rows[:, None] * BLOCK_R + r[None, :], mask=row_mask[:, None], other=0.0)
                d_down = tl.dot(tl.trans(u.to(wide)), dz, d_down, input_precision=WIDE_PRECISION)
            if NEED_UP or NEED_B_UP:
                d_out_rows = row_offsets(rows, inner, d_out_stride0, d_out_stride1, UNIT, TWO_DIMS, WIDE)
                gradient = load_rows(d_out, d_out_rows, row_mask, columns, D, EVEN_D, "evict_first")
                if NEED_UP:
                    z = tl.load(z_in + wide_rows[:, None] * BLOCK_R + r[None, :], mask=row_mask[:, None], other=0.0)
                    if d_out.dtype.element_ty == tl.float32:
                        d_up = tl.dot(tl.trans(gradient.to(wide)), z.to(wide), d_up, input_precision=WIDE_PRECISION)
                    else:
                        d_up = tl.dot(tl.trans(gradient), z, d_up)
                if NEED_B_UP:
                    db_up += tl.sum(gradient.to(tl.float32), 0)
            if NEED_E:
                loss_rows = row_offsets(rows, inner, d_loss_stride0, d_loss_stride1, 1, TWO_DIMS, WIDE)
                dl = tl.load(d_loss + loss_rows, mask=row_mask, other=0.0)
                factor = 2.0 * dl if OBJECTIVE == "l2" else dl
                to_u = factor
                to_rec = factor
                if OBJECTIVE == "cosine":
                    to_u = tl.load(to_u_in + rows, mask=row_mask, other=0.0)
                    to_rec = tl.load(to_rec_in + rows, mask=row_mask, other=0.0)
                h = tl.load(h_in + wide_rows[:, None] * BLOCK_H + h_columns[None, :], mask=row_mask[:, None], other=0.0)
                rec = tl.dot(h, weight, input_precision=PRECISION) + bias[None, :]
                e = loss_gradient(u, rec, to_u, to_rec, columns, OBJECTIVE, D, EVEN_D)
                if NEED_B_REC2:
                    db_rec2 += tl.sum(tl.where(row_mask[:, None], factor[:, None] * e, 0.0), 0)
                if NEED_REC2:
                    # The sum is over tokens, so the loss gradient goes to h.
                    scaled = (factor[:, None] * h.to(tl.float32)).to(wide)
                    d_rec2 = tl.dot(tl.trans(e.to(wide)), scaled, d_rec2, input_precision=WIDE_PRECISION)
        r_mask = d_mask[:, None] & (r < R)[None, :]
        h_mask = d_mask[:, None] & (h_columns < H)[None, :]
        if NEED_DOWN:
            tl.store(parts + columns[:, None] * R + r[None, :], d_down, mask=r_mask)
        if NEED_UP:
            tl.store(parts + R * D + r[None, :] * D + columns[:, None], d_up, mask=r_mask)
        if NEED_REC2:
            tl.store(parts + 2 * R * D + h_columns[None, :] * D + columns[:, None], d_rec2, mask=h_mask)
        if NEED_B_UP:
            tl.store(parts + (2 * R + H) * D + columns, db_up, mask=d_mask)
        if NEED_B_REC2:
            tl.store(parts + (2 * R + H + 1) * D + columns, db_rec2, mask=d_mask)
    else:
        parts += (2 * R + H + 2) * D
        d_rec1 = tl.zeros([BLOCK_R, BLOCK_H], tl.float32)
        db_down = tl.zeros([BLOCK_R], tl.float32)
        db_rec1 = tl.zeros([BLOCK_H], tl.float32)
        for start in range(first, last, BLOCK_M):
            rows = start + tl.arange(0, BLOCK_M)
            row_mask = rows < last
            wide_rows = rows.to(tl.int64) if WIDE else rows
            if NEED_B_DOWN:
                dz = tl.load(dz_in + wide_rows[:, None] * BLOCK_R + r[None, :], mask=row_mask[:, None], other=0.0)
                db_down += tl.sum(dz.to(tl.float32), 0)
            if NEED_REC1 or NEED_B_REC1:
                dh = tl.load(
                    dh_in + wide_rows[:, None] * BLOCK_H + h_columns[None, :], mask=row_mask[:, None], other=0.0
                )
                if NEED_REC1:
                    z = tl.load(z_in + wide_rows[:, None] * BLOCK_R + r[None, :], mask=row_mask[:, None], other=0.0)
                    d_rec1 = tl.dot(tl.trans(z.to(wide)), dh, d_rec1, input_precision=WIDE_PRECISION)
                if NEED_B_REC1:
                    db_rec1 += tl.sum(dh.to(tl.float32), 0)
        if NEED_REC1:
            mask = (r < R)[:, None] & (h_columns < H)[None, :]
            tl.store(parts + r[:, None] * H + h_columns[None, :], d_rec1, mask=mask)
        if NEED_B_DOWN:
            tl.store(parts + R * H + r, db_down, mask=r < R)
        if NEED_B_REC1:
            tl.store(parts + R * H + R + h_columns, db_rec1, mask=h_columns < H)


@triton.jit
def add_parts(parts, gradient, factor, chunks, SIZE: tl.constexpr, OFFSET: tl.constexpr, COUNT: tl.constexpr,
              BLOCK: tl.constexpr, CHUNKS: tl.constexpr):  # fmt: skip
    """``gradient`` [COUNT] = factor times the sum over chunks of parts[:, OFFSET:OFFSET + COUNT], CHUNKS at a time."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < COUNT
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        address = parts + (OFFSET + chunk.to(tl.int64)[:, None] * SIZE + columns[None, :])
        total += tl.sum(tl.load(address, mask=(chunk < chunks)[:, None] & mask[None, :], other=0.0), 0)
    tl.store(gradient + columns, (factor * total).to(gradient.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["chunks", "up_factor"])
def rm_adapter_backward_sum_kernel(
    dw_down, db_down, dw_up, db_up, dw_rec1, db_rec1, dw_rec2, db_rec2, parts, chunks: tl.int32, up_factor: tl.float32,
    D: tl.constexpr, R: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """K3. Grid: blocks of the largest gradient, by the eight gradients; None where nobody needs it."""
    SIZE: tl.constexpr = (2 * R + H + 2) * D + (R + 1) * H + R
    SMALL: tl.constexpr = (2 * R + H + 2) * D
    which = tl.program_id(1)
    if which == 0:
        if dw_down is not None:
            add_parts(parts, dw_down, 1.0, chunks, SIZE, 0, D * R, BLOCK, CHUNKS)
    elif which == 1:
        if dw_up is not None:
            add_parts(parts, dw_up, up_factor, chunks, SIZE, R * D, R * D, BLOCK, CHUNKS)
    elif which == 2:
        if dw_rec2 is not None:
            add_parts(parts, dw_rec2, 1.0, chunks, SIZE, 2 * R * D, H * D, BLOCK, CHUNKS)
    elif which == 3:
        if db_up is not None:
            add_parts(parts, db_up, up_factor, chunks, SIZE, (2 * R + H) * D, D, BLOCK, CHUNKS)
    elif which == 4:
        if db_rec2 is not None:
            add_parts(parts, db_rec2, 1.0, chunks, SIZE, (2 * R + H + 1) * D, D, BLOCK, CHUNKS)
    elif which == 5:
        if dw_rec1 is not None:
            add_parts(parts, dw_rec1, 1.0, chunks, SIZE, SMALL, R * H, BLOCK, CHUNKS)
    elif which == 6:
        if db_down is not None:
            add_parts(parts, db_down, 1.0, chunks, SIZE, SMALL + R * H, R, BLOCK, CHUNKS)
    else:
        if db_rec1 is not None:
            add_parts(parts, db_rec1, 1.0, chunks, SIZE, SMALL + R * H + R, H, BLOCK, CHUNKS)
