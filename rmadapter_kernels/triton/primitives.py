"""What forward and backward kernels share: addresses, loads, activations, the down-projection.

Every tile of a wide tensor is [BLOCK_M, BLOCK_D] rows of ``x`` (masked where M or D ends), every bottleneck tile
[BLOCK_M, BLOCK_R] in registers, its columns beyond R zero. Loads fill with zero what they mask.
"""

import triton
import triton.language as tl

QUICK_GELU_SLOPE = tl.constexpr(1.702)
SQRT_HALF = tl.constexpr(0.7071067811865476)
INV_SQRT_TWO_PI = tl.constexpr(0.3989422804014327)
COSINE_EPS = tl.constexpr(1e-8)


@triton.jit
def row_offsets(rows, inner, stride0, stride1, UNIT: tl.constexpr, TWO_DIMS: tl.constexpr, WIDE: tl.constexpr):
    """Offset of each row's first element; strides come in units of UNIT elements so that alignment is known."""
    if WIDE:
        rows = rows.to(tl.int64)
        stride0 = stride0.to(tl.int64) * UNIT
        stride1 = stride1.to(tl.int64) * UNIT
    else:
        stride0 = stride0.to(tl.int32) * UNIT
        stride1 = stride1.to(tl.int32) * UNIT
    if TWO_DIMS:
        offsets = (rows // inner) * stride0 + (rows % inner) * stride1
    else:
        offsets = rows * stride1
    return offsets


@triton.jit
def load_rows(pointer, offsets, row_mask, columns, D: tl.constexpr, EVEN_D: tl.constexpr, POLICY: tl.constexpr):
    """A tile [BLOCK_M, BLOCK_D] of a wide tensor in its own dtype."""
    mask = row_mask[:, None] if EVEN_D else row_mask[:, None] & (columns < D)[None, :]
    return tl.load(pointer + (offsets[:, None] + columns[None, :]), mask=mask, other=0.0, eviction_policy=POLICY)


@triton.jit
def store_rows(pointer, offsets, row_mask, columns, value, D: tl.constexpr, EVEN_D: tl.constexpr):
    """Write a tile [BLOCK_M, BLOCK_D] in the tensor's dtype; it is not read again, so it leaves the cache first."""
    mask = row_mask[:, None] if EVEN_D else row_mask[:, None] & (columns < D)[None, :]
    value = value.to(pointer.dtype.element_ty)
    tl.store(pointer + (offsets[:, None] + columns[None, :]), value, mask=mask, eviction_policy="evict_first")


@triton.jit
def load_matrix(
    pointer,
    rows,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN_ROWS: tl.constexpr,
    EVEN_COLUMNS: tl.constexpr,
):
    """A tile of a contiguous weight [ROWS, COLUMNS], in its own dtype."""
    address = pointer + (rows[:, None] * COLUMNS + columns[None, :])
    if EVEN_ROWS and EVEN_COLUMNS:
        tile = tl.load(address)
    elif EVEN_ROWS:
        tile = tl.load(address, mask=(columns < COLUMNS)[None, :], other=0.0)
    elif EVEN_COLUMNS:
        tile = tl.load(address, mask=(rows < ROWS)[:, None], other=0.0)
    else:
        tile = tl.load(address, mask=(rows < ROWS)[:, None] & (columns < COLUMNS)[None, :], other=0.0)
    return tile


@triton.jit
def load_vector(pointer, columns, SIZE: tl.constexpr, EVEN: tl.constexpr):
    """A tile of a bias or norm vector in fp32."""
    if EVEN:
        tile = tl.load(pointer + columns)
    else:
        tile = tl.load(pointer + columns, mask=columns < SIZE, other=0.0)
    return tile.to(tl.float32)


@triton.jit
def keep_columns(value, columns, SIZE: tl.constexpr, EVEN: tl.constexpr):
    """Zero beyond SIZE: an infinity times a masked weight is NaN there, and would spread from padding to results."""
    if not EVEN:
        value = tl.where((columns < SIZE)[None, :], value, 0.0)
    return value


@triton.jit
def activate(x, NAME: tl.constexpr):
    """The activation, in fp32; NaN stays NaN."""
    if NAME == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * SQRT_HALF))
    elif NAME == "relu":
        y = tl.where(x < 0.0, 0.0, x)
    elif NAME == "quick_gelu":
        y = x * tl.sigmoid(x * QUICK_GELU_SLOPE)
    else:
        tl.static_assert(NAME == "silu")
        y = x * tl.sigmoid(x)
    return y


@triton.jit
def activate_backward(gradient, x, NAME: tl.constexpr):
    """``gradient`` times the activation's derivative at ``x``, in fp32."""
    if NAME == "gelu":
        cumulative = 0.5 * (1.0 + tl.erf(x * SQRT_HALF))
        y = gradient * (cumulative + x * (tl.exp(-0.5 * x * x) * INV_SQRT_TWO_PI))
    elif NAME == "relu":
        y = tl.where(x <= 0.0, 0.0, gradient)
    elif NAME == "quick_gelu":
        s = tl.sigmoid(x * QUICK_GELU_SLOPE)
        y = gradient * (s + x * QUICK_GELU_SLOPE * s * (1.0 - s))
    else:
        tl.static_assert(NAME == "silu")
        s = tl.sigmoid(x)
        y = gradient * (s + x * s * (1.0 - s))
    return y


@triton.jit
def normalise(x, mean, rstd, norm_weight, norm_bias, columns, D: tl.constexpr, EVEN_D: tl.constexpr):
    """x_hat and LayerNorm(x), [BLOCK_M, BLOCK_D] in fp32; both zero beyond D."""
    x_hat = (x.to(tl.float32) - mean[:, None]) * rstd[:, None]
    x_hat = keep_columns(x_hat, columns, D, EVEN_D)
    u = x_hat
    if norm_weight is not None:
        u = u * load_vector(norm_weight, columns, D, EVEN_D)[None, :]
    if norm_bias is not None:
        u = u + load_vector(norm_bias, columns, D, EVEN_D)[None, :]
    return x_hat, u


@triton.jit
def down_weight(w_down, norm_weight, rows, columns, dtype: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
                EVEN_D: tl.constexpr, EVEN_R: tl.constexpr):  # fmt: skip
    """diag(norm weight) W_down, [BLOCK_D, BLOCK_R] in ``dtype``: rounded once, after the product."""
    weight = load_matrix(w_down, rows, columns, D, R, EVEN_D, EVEN_R)
    if norm_weight is not None:
        weight = weight.to(tl.float32) * load_vector(norm_weight, rows, D, EVEN_D)[:, None]
    return weight.to(dtype)


@triton.jit
def down_projection(x, offsets, row_mask, norm_weight, norm_bias, eps, w_down, b_down,
                    D: tl.constexpr, R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
                    BLOCK_R: tl.constexpr, NORM: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """W_down^T u + b_down for a block of rows, in one pass over them: pre, mean, rstd, centred, column_sum.

    LayerNorm goes into the weights: with G = diag(gamma) W_down,

        u W_down = rstd (x G - mean 1^T G) + beta W_down

    where 1^T G is summed from the rounded G, so that rounding does not turn the mean into an error. In fp32 a large
    mean would still cancel in the accumulator (5 to 8 times the error at ten sigmas), so there x is shifted by the
    mean of its first tile. Mean and variance come from each tile's own, merged (Chan et al.), not from E[x^2].
    ``centred`` [BLOCK_M, BLOCK_R] is x_hat G, ``column_sum`` [BLOCK_R] is 1^T G: LayerNorm's backward needs both.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    EVEN_D: tl.constexpr = D % BLOCK_D == 0
    EVEN_R: tl.constexpr = R == BLOCK_R
    r = tl.arange(0, BLOCK_R)
    pre = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    mean = tl.zeros([BLOCK_M], tl.float32)
    second_moment = tl.zeros([BLOCK_M], tl.float32)
    shift = tl.zeros([BLOCK_M], tl.float32)
    column_sum = tl.zeros([BLOCK_R], tl.float32)
    bias = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, D, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        tile = load_rows(x, offsets, row_mask, columns, D, EVEN_D, "")
        weight = down_weight(w_down, norm_weight, columns, r, dtype, D, R, EVEN_D, EVEN_R)
        if NORM:
            wide = tile.to(tl.float32)
            count = tl.minimum(BLOCK_D, D - start).to(tl.float32)
            tile_mean = tl.sum(wide, 1) / count
            deviation = keep_columns(wide - tile_mean[:, None], columns, D, EVEN_D)
            delta = tile_mean - mean
            part = count / (start + count)
            second_moment += tl.sum(deviation * deviation, 1) + delta * delta * (start * part)
            mean += delta * part
            if dtype == tl.float32:
                shift = tl.where(start == 0, tile_mean, shift)
                tile = keep_columns(tile - shift[:, None], columns, D, EVEN_D)
            column_sum += tl.sum(weight.to(tl.float32), 0)
            if norm_bias is not None:
                raw = load_matrix(w_down, columns, r, D, R, EVEN_D, EVEN_R).to(dtype).to(tl.float32)
                bias += tl.sum(raw * load_vector(norm_bias, columns, D, EVEN_D)[:, None], 0)
        pre = tl.dot(tile, weight, pre, input_precision=PRECISION)
    rstd = tl.zeros([BLOCK_M], tl.float32)
    centred = pre
    if NORM:
        rstd = 1.0 / tl.sqrt_rn(second_moment / D + eps)
        centred = rstd[:, None] * (pre - (mean - shift)[:, None] * column_sum[None, :])
        pre = centred + bias[None, :]
    pre += load_vector(b_down, r, R, EVEN_R)[None, :]
    # Rounding the bias to the dtype of x, as eager does, is left out: it only loses.
    return keep_columns(pre, r, R, EVEN_R), mean, rstd, centred, column_sum


@triton.jit
def hidden_projection(z, w_rec1, b_rec1, R: tl.constexpr, H: tl.constexpr, BLOCK_R: tl.constexpr,
                      BLOCK_H: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """z W_rec1 + b_rec1, [BLOCK_M, BLOCK_H] in fp32, zero beyond H; ``z`` in the dtype of the product."""
    EVEN_R: tl.constexpr = R == BLOCK_R
    EVEN_H: tl.constexpr = H == BLOCK_H
    h = tl.arange(0, BLOCK_H)
    weight = load_matrix(w_rec1, tl.arange(0, BLOCK_R), h, R, H, EVEN_R, EVEN_H).to(z.dtype)
    pre = tl.dot(z, weight, input_precision=PRECISION) + load_vector(b_rec1, h, H, EVEN_H)[None, :]
    return keep_columns(pre, h, H, EVEN_H)


@triton.jit
def up_projection(z, weight, bias, columns, R: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr,
                  EVEN_D: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """z weight + bias for a tile of D, [BLOCK_M, BLOCK_D] in fp32; ``z`` in the dtype of the product."""
    tile = load_matrix(weight, tl.arange(0, BLOCK_R), columns, R, D, R == BLOCK_R, EVEN_D).to(z.dtype)
    return tl.dot(z, tile, input_precision=PRECISION) + load_vector(bias, columns, D, EVEN_D)[None, :]


@triton.jit
def loss_terms(u, rec, columns, OBJECTIVE: tl.constexpr, D: tl.constexpr, EVEN_D: tl.constexpr):
    """l2 or l1 of each token over one tile, [BLOCK_M]; summed as it stands, the expanded square would lose 1e-2."""
    difference = keep_columns(u - rec, columns, D, EVEN_D)
    if OBJECTIVE == "l2":
        terms = difference * difference
    else:
        terms = tl.abs(difference)
    return tl.sum(terms, 1)


@triton.jit
def cosine_terms(u, rec, columns, D: tl.constexpr, EVEN_D: tl.constexpr):
    """u . rec, |u|^2, |rec|^2 of each token over one tile, [BLOCK_M] each."""
    u = keep_columns(u, columns, D, EVEN_D)
    rec = keep_columns(rec, columns, D, EVEN_D)
    return tl.sum(u * rec, 1), tl.sum(u * u, 1), tl.sum(rec * rec, 1)
