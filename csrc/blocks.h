// What forward and backward share: block sizes, memory, and the first steps on a block of rows.

// Hands out parts of one piece of memory; with address 0 it only counts.
struct Memory {
  uintptr_t address;
  size_t used = 0;

  explicit Memory(const char* base) : address(reinterpret_cast<uintptr_t>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* result = reinterpret_cast<T*>(address + used);
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return result;
  }
};

// The products between r and h, in fp32 where registers do the others: they are a fiftieth of the work.
template <class P>
using Narrow = std::conditional_t<P::TILES, P, Floats>;

template <class P>
struct Sizes {
  static constexpr bool PAIRS = P::DEPTH == 2;
  int64_t D, r, h;            // of the tensors
  int64_t width;              // of a row of a block: D, or the next multiple that the products take
  int64_t rk, hk;             // r and h as a number of rows of packed weights
  int64_t narrow_r, narrow_h;  // the same for the products between r and h
  int64_t rn, hn;             // r and h as a number of columns
  int64_t rows;               // of a block at most, a multiple of P::ROWS, which is even
  bool direct;                // rows of x are elements of the products as they are

  explicit Sizes(const Problem& problem)
      : D(problem.D),
        r(problem.r),
        h(problem.h),
        width(round_up(D, P::K_STEP)),
        rk(round_up(r, P::K_STEP)),
        hk(round_up(h, P::K_STEP)),
        narrow_r(round_up(r, Narrow<P>::K_STEP)),
        narrow_h(round_up(h, Narrow<P>::K_STEP)),
        rn(round_up(r, P::COLUMNS)),
        hn(round_up(h, P::COLUMNS)),
        direct(!problem.normalise && problem.dtype == (PAIRS ? Dtype::bf16 : Dtype::f32) && width == D) {
    // About 150 KB of floats: x, and in backward three more of its size, stay in a second-level cache. Processors with
    // tiles have 2 MB of it.
    const int64_t step = P::TILES ? 32 : 24, most = P::TILES ? 128 : 96;
    const int64_t fitting = (P::TILES ? 98304 : 36864) / D / step * step;
    rows = fitting < step ? step : fitting > most ? most : fitting;
    if (problem.M < rows) rows = round_up(problem.M, P::ROWS);
  }
};

// Calls f with the kind of products that suits x.
template <class F>
INLINE void with_products([[maybe_unused]] const Problem& problem, F f) {
#if defined(RMADAPTER_AMX)
  if (problem.dtype == Dtype::bf16) return f(Tiles());
#elif defined(RMADAPTER_BF16)
  if (problem.dtype == Dtype::bf16) return f(Pairs());
#endif
  f(Floats());
}

// LayerNorm of a row of x: mean and 1 / standard deviation by two passes over the row, which is in the first cache. The
// second also sums what rounding kept out of the mean: of a row of equal numbers nothing else is left, times 1 / sqrt(eps).
template <class T>
INLINE void statistics(const T* x, int64_t D, float eps, float* mean, float* rstd) {
  Vec total = splat(0.0f);
  for (int64_t d = 0; d < D; d += WIDTH) total = add(total, load(x + d));
  const float rounded = sum(total) / static_cast<float>(D);
  Vec rest = splat(0.0f), squares = splat(0.0f);
  for (int64_t d = 0; d < D; d += WIDTH) {
    const Vec centred = sub(load(x + d), splat(rounded));
    rest = add(rest, centred);
    squares = fma(centred, centred, squares);
  }
  const float kept_out = sum(rest) / static_cast<float>(D);
  const float variance = sum(squares) / static_cast<float>(D) - kept_out * kept_out;
  *mean = rounded + kept_out;
  *rstd = 1.0f / std::sqrt((variance < 0.0f ? 0.0f : variance) + eps);
}

// gamma and beta of the LayerNorm; mean and rstd of each row of a block.
struct Norm {
  const float* gamma;
  const float* beta;
  float* mean;
  float* rstd;
};

// Completes rows of `block` that the products read: zeros from D on, and the last row again up to `padded`.
template <class P, class Element>
void complete_rows(const Sizes<P>& sizes, Element* block, int64_t rows, int64_t padded) {
  for (int64_t i = 0; i < rows && sizes.width > sizes.D; ++i)
    std::memset(static_cast<void*>(block + i * sizes.width + sizes.D), 0, (sizes.width - sizes.D) * sizeof(Element));
  for (int64_t i = rows; i < padded; ++i)
    std::memcpy(static_cast<void*>(block + i * sizes.width), block + (rows - 1) * sizes.width,
                sizes.width * sizeof(Element));
}

// Pointers to rows of elements as the products take them, where `from` holds them: rows in place or, where tiles need a
// full set of rows at one distance, rows of `block`.
template <class P, class Element>
void point_to_elements(const Sizes<P>& sizes, const Rows& from, int64_t first, int64_t rows, int64_t padded,
                       Element* block, const Element** to) {
  point_to_rows<const Element>(from, first, rows, padded, to);
  if constexpr (P::TILES) {
    const auto at = [&](int64_t i) { return reinterpret_cast<intptr_t>(to[i]); };
    bool even = rows == padded && sizes.width == sizes.D;
    for (int64_t i = 2; i < rows && even; ++i) even = at(i) - at(i - 1) == at(1) - at(0);
    if (even) return;
    for (int64_t i = 0; i < rows; ++i)
      std::memcpy(static_cast<void*>(block + i * sizes.width), to[i], sizes.D * sizeof(Element));
    complete_rows(sizes, block, rows, padded);
    point_to_rows<const Element>(block, sizes.width, padded, to);
  }
}

// The adapter's input u of a block as elements of the products: pointers into x where it is that already, else rows of
// `block`, converted or normalised.
template <class P>
void load_input(const Problem& problem, const Sizes<P>& sizes, const Norm& norm, int64_t first, int64_t rows,
                int64_t padded, typename P::Element* block, const typename P::Element** u) {
  using Element = typename P::Element;
  if (sizes.direct) return point_to_elements<P>(sizes, problem.x, first, rows, padded, block, u);
  with_type(problem.dtype, [&](auto* kind) {
    using T = std::remove_pointer_t<decltype(kind)>;
    for (int64_t i = 0; i < rows; ++i) {
      const T* x = reinterpret_cast<const T*>(row_of(problem.x, first + i));
      Element* to = block + i * sizes.width;
      if (!problem.normalise) {
        convert_row(x, to, sizes.D);
        continue;
      }
      statistics(x, sizes.D, problem.norm_eps, &norm.mean[i], &norm.rstd[i]);
      const Vec mean = splat(norm.mean[i]), rstd = splat(norm.rstd[i]);
      for (int64_t d = 0; d < sizes.D; d += WIDTH) {
        const Vec x_hat = mul(sub(load(x + d), mean), rstd);
        store(to + d, fma(x_hat, load(norm.gamma + d), load(norm.beta + d)));
      }
    }
  });
  complete_rows(sizes, block, rows, padded);
  point_to_rows<const Element>(block, sizes.width, padded, u);
}

// values[rows, n] = activation(values + bias), and its derivative where it is wanted.
INLINE void activate(Activation name, float* values, const float* bias, int64_t rows, int64_t n, float* derivative) {
  with_activation(name, [&](auto activation) INLINE_LAMBDA {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < n; j += WIDTH) {
        const Activated a = activation(add(load(values + i * n + j), load(bias + j)));
        store(values + i * n + j, a.value);
        if (derivative) store(derivative + i * n + j, a.derivative);
      }
    }
  });
}

// Floats [rows, n] as elements of the products: themselves, or rounded into `block`.
INLINE const float* as_elements(const float* values, int64_t, int64_t, float*) { return values; }
INLINE const BFloat16* as_elements(const float* values, int64_t rows, int64_t n, BFloat16* block) {
  for (int64_t i = 0; i < rows * n; i += WIDTH) store(block + i, load(values + i));
  return block;
}

// sums [rows, n] = a [rows, stride] p, a product between r and h; K of a's columns count. Tiles take floats in two parts, as
// what they are in bf16 and what is left over, in `block` [rows, 2 stride]: no precision is lost that others keep.
template <class P>
void reduce_narrow(const float* a, int64_t stride, int64_t rows, int64_t K, const typename Narrow<P>::Element* p,
                   float* sums, int64_t n, [[maybe_unused]] typename P::Element* block,
                   const typename Narrow<P>::Element** pointers) {
  if constexpr (P::TILES) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < stride; j += WIDTH) {
        const Vec value = load(a + i * stride + j);
        auto* to = block + 2 * i * stride + j;
        store(to, value);
        store(to + stride, sub(value, load(to)));
      }
    point_to_rows<const typename P::Element>(block, 2 * stride, rows, pointers);
    reduce_on_tiles(pointers, rows, K, p, sums, n, 2);
  } else {
    point_to_rows(a, stride, rows, pointers);
    reduce<Floats>(pointers, rows, K, p, sums, n);
  }
}

// Gradient of a LayerNorm's weight, one where it is absent, which the arithmetic of the padding must not see.
INLINE void pack_norm(const Problem& problem, float* gamma, float* beta) {
  if (!problem.normalise) return;
  pack_vector(problem.norm_weight, problem.D, problem.D, Dtype::f32, gamma);
  pack_vector(problem.norm_bias, problem.D, problem.D, Dtype::f32, beta);
  if (!problem.norm_weight.data)
    for (int64_t d = 0; d < problem.D; ++d) gamma[d] = 1.0f;
}
