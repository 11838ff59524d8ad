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

template <class P>
struct Sizes {
  static constexpr bool PAIRS = P::DEPTH == 2;
  int64_t D, r, h;    // of the tensors
  int64_t rk, hk;     // r and h as a number of rows of packed weights
  int64_t rn, hn;     // r and h as a number of columns
  int64_t rows;       // of a block at most, a multiple of TILE_ROWS, which is even
  bool direct;        // rows of x are elements of the products as they are

  explicit Sizes(const Problem& problem)
      : D(problem.D),
        r(problem.r),
        h(problem.h),
        rk(round_up(r, P::DEPTH)),
        hk(round_up(h, P::DEPTH)),
        rn(round_up(r, WIDTH)),
        hn(round_up(h, WIDTH)),
        direct(!problem.normalise && problem.dtype == (PAIRS ? Dtype::bf16 : Dtype::f32)) {
    // About 150 KB of floats: x, and in backward three more of its size, stay in a second-level cache.
    const int64_t fitting = 36864 / D / 24 * 24;
    rows = fitting < 24 ? 24 : fitting > 96 ? 96 : fitting;
    if (problem.M < rows) rows = round_up(problem.M, TILE_ROWS);
  }
};

// Calls f with the kind of products that suits x.
template <class F>
INLINE void with_products([[maybe_unused]] const Problem& problem, F f) {
#ifdef RMADAPTER_BF16
  if (problem.dtype == Dtype::bf16) return f(Pairs());
#endif
  f(Floats());
}

// LayerNorm of a row of x: mean and 1 / standard deviation by two passes over the row, which is in the first cache.
template <class T>
INLINE void statistics(const T* x, int64_t D, float eps, float* mean, float* rstd) {
  Vec total = splat(0.0f);
  for (int64_t d = 0; d < D; d += WIDTH) total = add(total, load(x + d));
  *mean = sum(total) / static_cast<float>(D);
  Vec squares = splat(0.0f);
  for (int64_t d = 0; d < D; d += WIDTH) {
    const Vec centred = sub(load(x + d), splat(*mean));
    squares = fma(centred, centred, squares);
  }
  *rstd = 1.0f / std::sqrt(sum(squares) / static_cast<float>(D) + eps);
}

// gamma and beta of the LayerNorm; mean and rstd of each row of a block.
struct Norm {
  const float* gamma;
  const float* beta;
  float* mean;
  float* rstd;
};

// The adapter's input u of a block as elements of the products: pointers into x where it is that already, else rows of
// `block`, converted or normalised.
template <class P>
void load_input(const Problem& problem, const Sizes<P>& sizes, const Norm& norm, int64_t first, int64_t rows,
                int64_t padded, typename P::Element* block, const typename P::Element** u) {
  using Element = typename P::Element;
  if (sizes.direct) return point_to_rows<const Element>(problem.x, first, rows, padded, u);
  with_type(problem.dtype, [&](auto* kind) {
    using T = std::remove_pointer_t<decltype(kind)>;
    for (int64_t i = 0; i < rows; ++i) {
      const T* x = reinterpret_cast<const T*>(row_of(problem.x, first + i));
      Element* to = block + i * sizes.D;
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
  for (int64_t i = 0; i < padded; ++i) u[i] = block + (i < rows ? i : rows - 1) * sizes.D;
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

// Gradient of a LayerNorm's weight, one where it is absent, which the arithmetic of the padding must not see.
INLINE void pack_norm(const Problem& problem, float* gamma, float* beta) {
  if (!problem.normalise) return;
  pack_vector(problem.norm_weight, problem.D, problem.D, Dtype::f32, gamma);
  pack_vector(problem.norm_bias, problem.D, problem.D, Dtype::f32, beta);
  if (!problem.norm_weight.data)
    for (int64_t d = 0; d < problem.D; ++d) gamma[d] = 1.0f;
}
