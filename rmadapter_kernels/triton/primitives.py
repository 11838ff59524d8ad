"""What forward and backward kernels share: addresses, loads, activations, projections.

Every tile of a wide tensor is [BLOCK_M, BLOCK_D] rows of ``x`` (masked where M or D ends), every bottleneck tile
[BLOCK_M, BLOCK_R] in registers, its columns beyond R zero. Loads fill with zero what they mask.

Loops over D say ``num_stages`` themselves: only then is a load that feeds no product copied ahead of its use.

With PREPARED the weights come from the prepare kernel (prepare.py): in the dtype of the product, padded to BLOCK_R and
BLOCK_H, LayerNorm folded in. Without, from the caller's memory, and each program does that to each tile it loads.
"""

import triton
import triton.language as tl

QUICK_GELU_SLOPE = tl.constexpr(1.702)
SQRT_HALF = tl.constexpr(0.7071067811865476)
INV_SQRT_TWO_PI = tl.constexpr(0.3989422804014327)
COSINE_EPS = tl.constexpr(1e-8)


@triton.jit
def row_offsets(rows, inner, stride0, stride1, UNIT: tl.constexpr, TWO_DIMS: tl.constexpr, INDEX64: tl.constexpr):
    """Offset of each row's first element; strides come in units of UNIT elements so that alignment is known."""
    if INDEX64:
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
    """A tile [BLOCK_M, BLOCK_D] of a wide tensor in its own dtype; ``row_mask`` None: every row is there."""
    address = pointer + (offsets[:, None] + columns[None, :])
    if row_mask is not None:
        mask = row_mask[:, None] if EVEN_D else row_mask[:, None] & (columns < D)[None, :]
        tile = tl.load(address, mask=mask, other=0.0, eviction_policy=POLICY)
    elif EVEN_D:
        tile = tl.load(address, eviction_policy=POLICY)
    else:
        tile = tl.load(address, mask=(columns < D)[None, :], other=0.0, eviction_policy=POLICY)
    return tile


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
def load_columns(pointer, columns, D: tl.constexpr, EVEN_D: tl.constexpr, THREADS: tl.constexpr):
    """As ``load_vector``, a bias that is copied ahead in a loop over D by a program of THREADS.

    Triton 3.6 gives a vector with fewer elements than threads the layout of the product, in which each thread copies
    all that it needs, in eight instructions for 64 columns. Of two equal rows each thread copies one element.
    """
    BLOCK_D: tl.constexpr = columns.shape[0]
    if 2 * BLOCK_D == THREADS:
        twice = tl.broadcast_to(columns[None, :], [2, BLOCK_D])
        if EVEN_D:
            rows = tl.load(pointer + twice)
        else:
            rows = tl.load(pointer + twice, mask=twice < D, other=0.0)
        tile, _same = tl.split(tl.trans(rows))
        tile = tile.to(tl.float32)
    else:
        tile = load_vector(pointer, columns, D, EVEN_D)
    return tile


@triton.jit
def keep_columns(value, columns, SIZE: tl.constexpr, EVEN: tl.constexpr):
    """Zero beyond SIZE: an infinity times a masked weight is NaN there, and would spread from padding to results."""
    if not EVEN:
        value = tl.where((columns < SIZE)[None, :], value, 0.0)
    return value


@triton.jit
def normal_tail(x, AGAIN: tl.constexpr):
    """The standard normal's mass beyond |x|, and exp(-x^2 / 2): half the instructions of erf, error at most 1e-7.

    Abramowitz and Stegun, 7.1.26. From 30 deviations on both are zero anyway, and an infinity times them is none.
    AGAIN computes the same from -|x|: the compiler would otherwise keep the first results in registers, through all
    loops, for the derivative.
    """
    if AGAIN:
        negative = tl.maximum(-tl.abs(x), -30.0)
        bell = tl.exp2(negative * negative * -0.7213475204444817)
        t = 1.0 / (1.0 - 0.23164189 * negative)
    else:
        size = tl.minimum(tl.abs(x), 30.0)
        bell = tl.exp2(size * size * -0.7213475204444817)
        t = 1.0 / (1.0 + 0.23164189 * size)
    series = 0.5307027145 * t - 0.7265760135
    series = series * t + 0.7107068705
    series = series * t - 0.142248368
    series = series * t + 0.127414796
    return series * t * bell, bell


@triton.jit
def activate(x, NAME: tl.constexpr, dtype: tl.constexpr):
    """The activation, in fp32, for a result that is rounded to ``dtype``; NaN stays NaN."""
    if NAME == "gelu":
        if dtype == tl.float32:
            y = 0.5 * x * (1.0 + tl.erf(x * SQRT_HALF))
        else:
            tail, _bell = normal_tail(x, False)
            y = tl.where(x < 0.0, 0.0, x) - tl.minimum(tl.abs(x), 30.0) * tail
    elif NAME == "relu":
        y = tl.where(x < 0.0, 0.0, x)
    elif NAME == "quick_gelu":
        y = x * tl.sigmoid(x * QUICK_GELU_SLOPE)
    else:
        tl.static_assert(NAME == "silu")
        y = x * tl.sigmoid(x)
    return y


@triton.jit
def activate_backward(gradient, x, NAME: tl.constexpr, dtype: tl.constexpr):
    """``gradient`` times the activation's derivative at ``x``, in fp32."""
    if NAME == "gelu":
        if dtype == tl.float32:
            cumulative = 0.5 * (1.0 + tl.erf(x * SQRT_HALF))
            bell = tl.exp(-0.5 * x * x)
        else:
            tail, bell = normal_tail(x, True)
            cumulative = tl.where(x < 0.0, tail, 1.0 - tail)
        y = gradient * (cumulative + x * (bell * INV_SQRT_TWO_PI))
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
def normalise(x, mean, rstd, columns, D: tl.constexpr, EVEN_D: tl.constexpr):
    """x_hat, [BLOCK_M, BLOCK_D] in fp32; zero beyond D.

    From 16 bits as one multiplication and addition: what a large mean then cancels is below the rounding of x.
    """
    if x.dtype == tl.float32:
        x_hat = (x - mean[:, None]) * rstd[:, None]
    else:
        x_hat = x.to(tl.float32) * rstd[:, None] - (mean * rstd)[:, None]
    return keep_columns(x_hat, columns, D, EVEN_D)


@triton.jit
def nearest(value, PRECISION: tl.constexpr):
    """An operand of a product, in tf32 rounded to nearest: the units cut its 13 last bits off, always towards zero.

    Added to the bits, half a unit of tf32 carries into what is kept; the rest goes here, since the value is not always
    for a product alone. NaN, whose bits might carry into zero, is left.
    """
    if PRECISION == "tf32" and value.dtype == tl.float32:
        bits = (value.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        value = tl.where(value == value, bits.to(tl.float32, bitcast=True), value)
    return value


@triton.jit
def load_weight(pointer, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EVEN_ROWS: tl.constexpr,
                EVEN_COLUMNS: tl.constexpr, dtype: tl.constexpr, PREPARED: tl.constexpr,
                PRECISION: tl.constexpr):  # fmt: skip
    """A tile of a weight [ROWS, COLUMNS] as an operand in ``dtype``; the sizes are those of its memory."""
    tile = load_matrix(pointer, rows, columns, ROWS, COLUMNS, EVEN_ROWS, EVEN_COLUMNS)
    if not PREPARED:
        tile = nearest(tile.to(dtype), PRECISION)
    return tile


@triton.jit
def down_weight(w_down, norm_weight, rows, columns, dtype: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
                BLOCK_R: tl.constexpr, EVEN_D: tl.constexpr, PREPARED: tl.constexpr,
                PRECISION: tl.constexpr):  # fmt: skip
    """diag(norm weight) W_down, [BLOCK_D, BLOCK_R] in ``dtype``: rounded once, after the product."""
    if PREPARED:
        weight = load_matrix(w_down, rows, columns, D, BLOCK_R, EVEN_D, True)
    else:
        weight = load_matrix(w_down, rows, columns, D, R, EVEN_D, R == BLOCK_R)
        if norm_weight is not None:
            weight = weight.to(tl.float32) * load_vector(norm_weight, rows, D, EVEN_D)[:, None]
        weight = nearest(weight.to(dtype), PRECISION)
    return weight


@triton.jit
def down_projection(x, offsets, row_mask, norm_weight, norm_bias, eps, w_down, b_down, column_sum,
                    D: tl.constexpr, R: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
                    BLOCK_R: tl.constexpr, STAGES: tl.constexpr, NORM: tl.constexpr, PREPARED: tl.constexpr,
                    PRECISION: tl.constexpr):  # fmt: skip
    """W_down^T u + b_down for a block of rows, in one pass over them: pre, mean, rstd, bias, column sums.

    LayerNorm goes into the weights: with G = diag(gamma) W_down,

        u W_down = rstd (x G - mean 1^T G) + beta W_down

    where 1^T G is summed from the rounded G, so that rounding does not turn the mean into an error. In fp32 a large
    mean would still cancel in the accumulator (5 to 8 times the error at ten sigmas), so there x is shifted first.

    Mean and variance are those of x less the mean of its first 16 columns: the sums stay elementwise until the loop
    ends. Since those columns are part of the row, the shift is at most sqrt(D / 16) deviations from the mean, and the
    cancellation in the variance is at most D / 16 roundings of fp32.

    LayerNorm's backward needs the column sums 1^T G, and x_hat G, which is ``pre`` less the bias: [BLOCK_R] both.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    EVEN_D: tl.constexpr = D % BLOCK_D == 0
    EVEN_R: tl.constexpr = R == BLOCK_R
    TILES: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    r = tl.arange(0, BLOCK_R)
    pre = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    mean = tl.zeros([BLOCK_M], tl.float32)
    rstd = tl.zeros([BLOCK_M], tl.float32)
    sums_of_columns = tl.zeros([BLOCK_R], tl.float32)
    bias = tl.zeros([BLOCK_R], tl.float32)
    if NORM:
        if dtype == tl.float32:
            shift = tl.sum(load_rows(x, offsets, row_mask, tl.arange(0, 16), D, True, ""), 1) / 16
        else:
            # One element a row: the compiler may load it again in whatever layout a tile of x comes in.
            if row_mask is None:
                shift = tl.load(x + offsets).to(tl.float32)
            else:
                shift = tl.load(x + offsets, mask=row_mask, other=0.0).to(tl.float32)
        sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        squares = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for index in tl.range(0, TILES, num_stages=STAGES):
        columns = index * BLOCK_D + tl.arange(0, BLOCK_D)
        tile = load_rows(x, offsets, row_mask, columns, D, EVEN_D, "")
        weight = down_weight(w_down, norm_weight, columns, r, dtype, D, R, BLOCK_R, EVEN_D, PREPARED, PRECISION)
        if NORM:
            deviation = keep_columns(tile.to(tl.float32) - shift[:, None], columns, D, EVEN_D)
            sums += deviation
            squares += deviation * deviation
            if dtype == tl.float32:
                tile = deviation
            if not PREPARED:
                sums_of_columns += tl.sum(weight.to(tl.float32), 0)
                if norm_bias is not None:
                    raw = load_matrix(w_down, columns, r, D, R, EVEN_D, EVEN_R).to(dtype).to(tl.float32)
                    bias += tl.sum(raw * load_vector(norm_bias, columns, D, EVEN_D)[:, None], 0)
        pre = tl.dot(nearest(tile, PRECISION), weight, pre, input_precision=PRECISION)
    if NORM:
        if PREPARED:
            sums_of_columns = tl.load(column_sum + r)
        from_shift = tl.sum(sums, 1) / D
        mean = shift + from_shift
        variance = tl.sum(squares, 1) / D - from_shift * from_shift
        rstd = 1.0 / tl.sqrt_rn(tl.maximum(variance, 0.0, tl.PropagateNan.ALL) + eps)
        centre = from_shift if dtype == tl.float32 else mean
        pre = rstd[:, None] * (pre - centre[:, None] * sums_of_columns[None, :])
    if PREPARED:
        bias = tl.load(b_down + r)
    else:
        # Rounding the bias to the dtype of x, as eager does, is left out: it only loses.
        bias += load_vector(b_down, r, R, EVEN_R)
    pre += bias[None, :]
    return keep_columns(pre, r, R, EVEN_R), mean, rstd, bias, sums_of_columns


@triton.jit
def hidden_projection(z, weight, b_rec1, H: tl.constexpr, BLOCK_H: tl.constexpr, PRECISION: tl.constexpr):
    """z W_rec1 + b_rec1, [BLOCK_M, BLOCK_H] in fp32, zero beyond H; ``z`` and ``weight`` are operands."""
    EVEN_H: tl.constexpr = H == BLOCK_H
    h = tl.arange(0, BLOCK_H)
    pre = tl.dot(z, weight, input_precision=PRECISION) + load_vector(b_rec1, h, H, EVEN_H)[None, :]
    return keep_columns(pre, h, H, EVEN_H)


@triton.jit
def load_rec1(w_rec1, R: tl.constexpr, H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr,
              dtype: tl.constexpr, PREPARED: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The whole of W_rec1, [BLOCK_R, BLOCK_H]."""
    ROWS: tl.constexpr = BLOCK_R if PREPARED else R
    COLUMNS: tl.constexpr = BLOCK_H if PREPARED else H
    return load_weight(w_rec1, tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_H), ROWS, COLUMNS, ROWS == BLOCK_R,
                       COLUMNS == BLOCK_H, dtype, PREPARED, PRECISION)  # fmt: skip


@triton.jit
def load_up(pointer, columns, R: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr, EVEN_D: tl.constexpr,
            dtype: tl.constexpr, PREPARED: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """A tile of a weight that leads from a bottleneck of width R to D, [BLOCK_R, BLOCK_D]."""
    ROWS: tl.constexpr = BLOCK_R if PREPARED else R
    return load_weight(pointer, tl.arange(0, BLOCK_R), columns, ROWS, D, ROWS == BLOCK_R, EVEN_D, dtype, PREPARED,
                       PRECISION)  # fmt: skip


@triton.jit
def up_projection(z, weight, bias, PRECISION: tl.constexpr):
    """z weight + bias for a tile of D, [BLOCK_M, BLOCK_D] in fp32; ``z`` and ``weight`` are operands, ``bias``
    [BLOCK_D] is what the accumulator begins with."""
    start = tl.broadcast_to(bias[None, :], [z.shape[0], weight.shape[1]])
    return tl.dot(z, weight, start, input_precision=PRECISION)


@triton.jit
def target(x_hat, gamma, beta):
    """What the reconstruction is compared with, in fp32: x_hat gamma + beta, or the tile itself, given as x_hat."""
    u = x_hat
    if gamma is not None:
        u = u * gamma[None, :]
    if beta is not None:
        u = u + beta[None, :]
    return u


@triton.jit
def difference(h, weight, bias, x_hat, gamma, beta, PRECISION: tl.constexpr):
    """Reconstruction minus target for a tile of D, in fp32: the product begins with the bias less the target, which
    takes no instruction of its own."""
    if beta is not None:
        bias = bias - beta
    return tl.dot(h, weight, bias[None, :] - target(x_hat, gamma, None), input_precision=PRECISION)


@triton.jit
def load_optional(pointer, columns, D: tl.constexpr, EVEN_D: tl.constexpr):
    """A tile of a vector in fp32, None where there is none."""
    if pointer is not None:
        tile = load_vector(pointer, columns, D, EVEN_D)
    else:
        tile = None
    return tile


@triton.jit
def cosine_terms(u, rec, columns, D: tl.constexpr, EVEN_D: tl.constexpr):
    """u . rec, |u|^2, |rec|^2 of each token over one tile, [BLOCK_M] each."""
    u = keep_columns(u, columns, D, EVEN_D)
    rec = keep_columns(rec, columns, D, EVEN_D)
    return tl.sum(u * rec, 1), tl.sum(u * u, 1), tl.sum(rec * rec, 1)
