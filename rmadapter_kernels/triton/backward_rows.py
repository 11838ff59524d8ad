"""K1, the backward kernel of the rows. One program takes BLOCK_M rows; it writes dx and the small tensors that K2 takes
(z, h, dz, dh, LayerNorm's statistics, coefficients of the cosine), all of them [M, BLOCK_R or BLOCK_H] or [M]:

    loop 1 over D     pre += x W_down
    loop 2 over D     dh += e W_rec2^T, backwards             (the cosine first needs a pass for its norms)
    loop 3 over D     dz_b += d_out W_up^T
    in registers      dz_r = dh W_rec1^T, v, dz
    loop 4 over D     dx = v W_down^T (+ t), LayerNorm's backward; reads x again for LayerNorm and for t

Loop 2 reads x at once behind loop 1, the tiles read last first: with d_out in between, two thirds of it had left L2
by then (4.4 KB a token from memory on an H100 at 65,536 tokens, where x and d_out are 3.1).

``scale`` and the gradient of the loss multiply after products with raw d_out and e. Where a bottleneck gradient must be
rounded to fp16, whose range would lose it, each row is first divided by its largest value (``split_rows``).
"""

import triton
import triton.language as tl

from rmadapter_kernels.triton.primitives import (
    COSINE_EPS,
    activate,
    activate_backward,
    cosine_terms,
    difference,
    down_projection,
    down_weight,
    hidden_projection,
    keep_columns,
    load_optional,
    load_rec1,
    load_rows,
    load_up,
    load_vector,
    nearest,
    normalise,
    row_offsets,
    store_rows,
    target,
    up_projection,
)


@triton.jit
def split_rows(value, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """``value`` [M, N] as an operand in ``dtype`` and an fp32 factor [M] for the product's rows."""
    if dtype == tl.float16:
        largest = tl.max(tl.abs(value), 1)
        factor = tl.where((largest > 0.0) & (largest < float("inf")), largest, 1.0)
        value = value / factor[:, None]
    else:
        factor = tl.full([value.shape[0]], 1.0, tl.float32)
    return nearest(value.to(dtype), PRECISION), factor


@triton.jit
def loss_gradient(h, weight, bias, x_hat, gamma, beta, to_u, to_rec, to_x, columns, OBJECTIVE: tl.constexpr,
                  D: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Gradients of the loss over one tile to the reconstruction and to its target, in fp32, for a loss gradient of one;
    zero beyond D.

    For l2 they are half of that: the factor of two goes to the sum. ``to_u``, ``to_rec`` and ``to_x`` [M] are the
    cosine's coefficients.
    """
    if OBJECTIVE == "cosine":
        rec = up_projection(h, weight, bias, PRECISION)
        u = target(x_hat, gamma, beta)
        e = keep_columns(to_u[:, None] * u + to_rec[:, None] * rec, columns, D, EVEN_D)
        t = keep_columns(to_u[:, None] * rec + to_x[:, None] * u, columns, D, EVEN_D)
    else:
        e = difference(h, weight, bias, x_hat, gamma, beta, PRECISION)
        if OBJECTIVE == "l1":
            e = tl.where(e > 0.0, 1.0, 0.0) - tl.where(e < 0.0, 1.0, 0.0)
        e = keep_columns(e, columns, D, EVEN_D)
        t = -e
    return e, t


@triton.jit(do_not_specialize=["first_row", "last_row", "inner", "x_stride0", "x_stride1", "d_out_stride0",
                               "d_out_stride1", "d_loss_stride0", "d_loss_stride1", "dx_stride0", "dx_stride1",
                               "scale", "branch_grad_scale", "eps"])  # fmt: skip
def rm_adapter_backward_rows_kernel(
    x, d_out, d_loss, norm_weight, norm_bias, w_down, b_down, w_up, w_rec1, b_rec1, w_rec2, b_rec2, column_sum,
    dx, z, h, dz, dh, mean, rstd, to_u, to_rec,
    first_row: tl.int32, last_row: tl.int32, inner: tl.int32, x_stride0: tl.int64, x_stride1: tl.int64,
    d_out_stride0: tl.int64, d_out_stride1: tl.int64, d_loss_stride0: tl.int64, d_loss_stride1: tl.int64,
    dx_stride0: tl.int64, dx_stride1: tl.int64, scale: tl.float32, branch_grad_scale: tl.float32, eps: tl.float32,
    D: tl.constexpr, R: tl.constexpr, H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr, ACTIVATION: tl.constexpr,
    OBJECTIVE: tl.constexpr, LOCAL: tl.constexpr, NORM: tl.constexpr, FOLD: tl.constexpr, PREPARED: tl.constexpr,
    UNIT: tl.constexpr, TWO_DIMS: tl.constexpr, INDEX64: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """K1 of the rows from first_row to last_row. d_out or d_loss is None where that result was not used, every output
    where nobody needs it. FOLD: dz is stored times rstd, for K2's product with x as it is."""
    dtype: tl.constexpr = x.dtype.element_ty
    EVEN_D: tl.constexpr = D % BLOCK_D == 0
    EVEN_R: tl.constexpr = R == BLOCK_R
    EVEN_H: tl.constexpr = H == BLOCK_H
    TILES: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    NEED_V: tl.constexpr = dx is not None
    NEED_DZ: tl.constexpr = dz is not None
    # The reconstruction's gradient reaches dx only without the local cut.
    LOSS_TO_X: tl.constexpr = NEED_V and not LOCAL and d_loss is not None
    NEED_DH: tl.constexpr = d_loss is not None and (NEED_DZ or LOSS_TO_X or dh is not None)
    rows = first_row + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = rows < last_row
    r = tl.arange(0, BLOCK_R)
    h_columns = tl.arange(0, BLOCK_H)
    index_rows = rows.to(tl.int64) if INDEX64 else rows
    z_rows = index_rows[:, None] * BLOCK_R + r[None, :]
    h_rows = index_rows[:, None] * BLOCK_H + h_columns[None, :]
    x_rows = row_offsets(rows, inner, x_stride0, x_stride1, UNIT, TWO_DIMS, INDEX64)

    pre, own_mean, own_rstd, down_bias, sums_of_columns = down_projection(
        x, x_rows, row_mask, norm_weight, norm_bias, eps, w_down, b_down, column_sum, D, R, BLOCK_M, BLOCK_D, BLOCK_R,
        STAGES, NORM, PREPARED, PRECISION,
    )  # fmt: skip
    own_z = activate(pre, ACTIVATION, dtype).to(dtype)
    if z is not None:
        tl.store(z + z_rows, own_z, mask=row_mask[:, None])
    own_z = nearest(own_z, PRECISION)
    if NORM and mean is not None:
        tl.store(mean + rows, own_mean, mask=row_mask)
        tl.store(rstd + rows, own_rstd, mask=row_mask)

    dz_rec = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    own_to_u = tl.zeros([BLOCK_M], tl.float32)
    own_to_rec = tl.zeros([BLOCK_M], tl.float32)
    to_x = tl.zeros([BLOCK_M], tl.float32)
    d_hat_sum = tl.zeros([BLOCK_M], tl.float32)
    d_hat_dot = tl.zeros([BLOCK_M], tl.float32)
    if d_loss is not None:
        rec1_weight = load_rec1(w_rec1, R, H, BLOCK_R, BLOCK_H, dtype, PREPARED, PRECISION)
        pre_h = hidden_projection(own_z, rec1_weight, b_rec1, H, BLOCK_H, PRECISION)
        own_h = activate(pre_h, ACTIVATION, dtype).to(dtype)
        if h is not None:
            tl.store(h + h_rows, own_h, mask=row_mask[:, None])
        own_h = nearest(own_h, PRECISION)
        loss_rows = row_offsets(rows, inner, d_loss_stride0, d_loss_stride1, 1, TWO_DIMS, INDEX64)
        dl = tl.load(d_loss + loss_rows, mask=row_mask, other=0.0)
        factor = 2.0 * dl if OBJECTIVE == "l2" else dl
        if OBJECTIVE == "cosine" and (NEED_DH or to_u is not None):
            product = tl.zeros([BLOCK_M], tl.float32)
            u_square = tl.zeros([BLOCK_M], tl.float32)
            rec_square = tl.zeros([BLOCK_M], tl.float32)
            for index in tl.range(0, TILES, num_stages=STAGES):
                columns = index * BLOCK_D + tl.arange(0, BLOCK_D)
                tile = load_rows(x, x_rows, row_mask, columns, D, EVEN_D, "")
                rec_weight = load_up(w_rec2, columns, H, D, BLOCK_H, EVEN_D, dtype, PREPARED, PRECISION)
                gamma = load_optional(norm_weight, columns, D, EVEN_D)
                beta = load_optional(norm_bias, columns, D, EVEN_D)
                rec = up_projection(own_h, rec_weight, load_vector(b_rec2, columns, D, EVEN_D), PRECISION)
                x_hat = normalise(tile, own_mean, own_rstd, columns, D, EVEN_D) if NORM else tile.to(tl.float32)
                tile_dot, tile_u, tile_rec = cosine_terms(target(x_hat, gamma, beta), rec, columns, D, EVEN_D)
                product += tile_dot
                u_square += tile_u
                rec_square += tile_rec
            u_norm = tl.maximum(tl.sqrt_rn(u_square), COSINE_EPS, tl.PropagateNan.ALL)
            rec_norm = tl.maximum(tl.sqrt_rn(rec_square), COSINE_EPS, tl.PropagateNan.ALL)
            cosine = product / u_norm / rec_norm
            own_to_u = -1.0 / u_norm / rec_norm
            # Below the clamp the norm is a constant and its own term is gone.
            own_to_rec = tl.where(tl.sqrt_rn(rec_square) < COSINE_EPS, 0.0, cosine / rec_norm / rec_norm)
            to_x = tl.where(tl.sqrt_rn(u_square) < COSINE_EPS, 0.0, cosine / u_norm / u_norm)
            if to_u is not None:
                tl.store(to_u + rows, own_to_u, mask=row_mask)
                tl.store(to_rec + rows, own_to_rec, mask=row_mask)
        if NEED_DH:
            own_dh = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
            if NORM and LOSS_TO_X:
                t_terms = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
                t_products = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            for index in tl.range(0, TILES, num_stages=STAGES):
                columns = (TILES - 1 - index) * BLOCK_D + tl.arange(0, BLOCK_D)
                tile = load_rows(x, x_rows, row_mask, columns, D, EVEN_D, "")
                rec_weight = load_up(w_rec2, columns, H, D, BLOCK_H, EVEN_D, dtype, PREPARED, PRECISION)
                gamma = load_optional(norm_weight, columns, D, EVEN_D)
                beta = load_optional(norm_bias, columns, D, EVEN_D)
                bias = load_vector(b_rec2, columns, D, EVEN_D)
                x_hat = normalise(tile, own_mean, own_rstd, columns, D, EVEN_D) if NORM else tile.to(tl.float32)
                e, t = loss_gradient(own_h, rec_weight, bias, x_hat, gamma, beta, own_to_u, own_to_rec, to_x, columns,
                                     OBJECTIVE, D, EVEN_D, PRECISION)  # fmt: skip
                e = nearest(e.to(dtype), PRECISION)
                own_dh = tl.dot(e, tl.trans(rec_weight), own_dh, input_precision=PRECISION)
                if NORM and LOSS_TO_X:
                    t = target(t, gamma, None)
                    t_terms += t
                    t_products += t * x_hat
            if NORM and LOSS_TO_X:
                d_hat_sum = factor * tl.sum(t_terms, 1)
                d_hat_dot = factor * tl.sum(t_products, 1)
            # Both once more: registers that held them through the loop would spill.
            rec1_weight = load_rec1(w_rec1, R, H, BLOCK_R, BLOCK_H, dtype, PREPARED, PRECISION)
            pre_h = hidden_projection(own_z, rec1_weight, b_rec1, H, BLOCK_H, PRECISION)
            # Without the loss gradient, whose size may be anything, until after the product.
            own_dh = keep_columns(activate_backward(own_dh, pre_h, ACTIVATION, dtype), h_columns, H, EVEN_H)
            if dh is not None:
                tl.store(dh + h_rows, (factor[:, None] * own_dh).to(dh.dtype.element_ty), mask=row_mask[:, None])
            narrow_dh, dh_factor = split_rows(own_dh, dtype, PRECISION)
            dz_rec = tl.dot(narrow_dh, tl.trans(rec1_weight), input_precision=PRECISION)
            dz_rec = keep_columns((factor * dh_factor)[:, None] * dz_rec, r, R, EVEN_R)

    dz_base = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    if d_out is not None and (NEED_V or NEED_DZ):
        d_out_rows = row_offsets(rows, inner, d_out_stride0, d_out_stride1, UNIT, TWO_DIMS, INDEX64)
        for index in tl.range(0, TILES, num_stages=STAGES):
            columns = index * BLOCK_D + tl.arange(0, BLOCK_D)
            gradient = load_rows(d_out, d_out_rows, row_mask, columns, D, EVEN_D, "")
            up_weight = load_up(w_up, columns, R, D, BLOCK_R, EVEN_D, dtype, PREPARED, PRECISION)
            if dtype == tl.float16 and d_out.dtype.element_ty == tl.float32:
                # An fp32 gradient may lie below what fp16 holds.
                dz_base = tl.dot(nearest(gradient, "tf32"), tl.trans(up_weight).to(tl.float32), dz_base,
                                 input_precision="tf32")  # fmt: skip
            else:
                gradient = nearest(gradient.to(dtype), PRECISION)
                dz_base = tl.dot(gradient, tl.trans(up_weight), dz_base, input_precision=PRECISION)
        dz_base = keep_columns(scale * dz_base, r, R, EVEN_R)

    if NEED_DZ:
        own_dz = activate_backward(branch_grad_scale * dz_base + dz_rec, pre, ACTIVATION, dtype)
        if FOLD:
            own_dz = own_rstd[:, None] * own_dz
        own_dz = keep_columns(own_dz, r, R, EVEN_R)
        tl.store(dz + z_rows, own_dz.to(dz.dtype.element_ty), mask=row_mask[:, None])
    if NEED_V:
        v = dz_base if LOCAL else dz_base + dz_rec
        v = keep_columns(activate_backward(v, pre, ACTIVATION, dtype), r, R, EVEN_R)
        narrow, row_factor = split_rows(v, dtype, PRECISION)
        if NORM:
            # The two row sums of LayerNorm's backward come from the bottleneck, with no further pass over D.
            rounded = row_factor[:, None] * narrow.to(tl.float32)
            d_hat_sum = (d_hat_sum + tl.sum(rounded * sums_of_columns[None, :], 1)) / D
            d_hat_dot = (d_hat_dot + tl.sum(keep_columns(rounded * (pre - down_bias[None, :]), r, R, EVEN_R), 1)) / D
        dx_rows = row_offsets(rows, inner, dx_stride0, dx_stride1, UNIT, TWO_DIMS, INDEX64)
        for index in tl.range(0, TILES, num_stages=STAGES):
            columns = index * BLOCK_D + tl.arange(0, BLOCK_D)
            if NORM or LOSS_TO_X:
                # K2 reads x next: no hint that it may leave L2.
                tile = load_rows(x, x_rows, row_mask, columns, D, EVEN_D, "")
            weight = down_weight(w_down, norm_weight, columns, r, dtype, D, R, BLOCK_R, EVEN_D, PREPARED, PRECISION)
            into_x = row_factor[:, None] * tl.dot(narrow, tl.trans(weight), input_precision=PRECISION)
            if LOSS_TO_X:
                rec_weight = load_up(w_rec2, columns, H, D, BLOCK_H, EVEN_D, dtype, PREPARED, PRECISION)
                gamma = load_optional(norm_weight, columns, D, EVEN_D)
                beta = load_optional(norm_bias, columns, D, EVEN_D)
                bias = load_vector(b_rec2, columns, D, EVEN_D)
                x_hat = normalise(tile, own_mean, own_rstd, columns, D, EVEN_D) if NORM else tile.to(tl.float32)
                _e, t = loss_gradient(own_h, rec_weight, bias, x_hat, gamma, beta, own_to_u, own_to_rec, to_x, columns,
                                      OBJECTIVE, D, EVEN_D, PRECISION)  # fmt: skip
                into_x += factor[:, None] * target(t, gamma, None)
            if NORM:
                # rstd (into_x - sum - x_hat dot), in 16 bits with what belongs to the row in front of x.
                if dtype == tl.float32:
                    x_hat = normalise(tile, own_mean, own_rstd, columns, D, EVEN_D)
                    into_x = own_rstd[:, None] * (into_x - d_hat_sum[:, None] - x_hat * d_hat_dot[:, None])
                else:
                    slope = own_rstd * own_rstd * d_hat_dot
                    begin = own_mean * slope - own_rstd * d_hat_sum
                    into_x = own_rstd[:, None] * into_x + (begin[:, None] - tile.to(tl.float32) * slope[:, None])
            store_rows(dx, dx_rows, row_mask, columns, into_x, D, EVEN_D)
