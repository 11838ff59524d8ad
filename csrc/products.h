// The three products of the operator on a block of rows, each a register tile of rows x 2 vectors:
//
//   reduce   sums[rows, n]  = a[rows, K] p[K, n]        K = D: down-projection and its like
//   expand   tile[rows, D]  = a[rows, k] p[k, D]        k = r or h; the tile goes to an epilogue, not to memory
//   collect  total[D, n]   += a[rows, D]^T b[rows, n]   weight gradients
//
// `Floats` multiplies floats; `Pairs` multiplies neighbouring bf16 pairs and adds both to an fp32 sum. `Tiles` (tiles.h) has
// the same three on the processor's matrix unit.

struct Floats {
  using Element = float;
  static constexpr bool TILES = false;
  static constexpr int DEPTH = 1;        // elements along K in one step
  static constexpr int K_STEP = 1;       // K is a multiple of it
  static constexpr int ROWS = TILE_ROWS;  // and the number of rows of a block of this
  static constexpr int COLUMNS = WIDTH;  // and r and h, as numbers of columns, of this
  static INLINE Vec factor(const float* p) { return splat(*p); }
  static INLINE Vec weights(const float* p) { return load(p); }
  static INLINE Vec multiply(Vec a, Vec b, Vec total) { return fma(a, b, total); }
};

#ifdef RMADAPTER_BF16
struct Pairs {
  using Element = BFloat16;
  static constexpr bool TILES = false;
  static constexpr int DEPTH = 2;
  static constexpr int K_STEP = 2;
  static constexpr int ROWS = TILE_ROWS;
  static constexpr int COLUMNS = WIDTH;
  static INLINE __m512bh factor(const BFloat16* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static INLINE __m512bh weights(const BFloat16* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static INLINE Vec multiply(__m512bh a, __m512bh b, Vec total) { return _mm512_dpbf16_ps(total, a, b); }
};
#endif

template <class P, int R, int N>
INLINE void reduce_tile(const typename P::Element* const* a, int64_t steps, const typename P::Element* p, float* sums,
                        int64_t n, int64_t first, const Ahead* ahead) {
  const typename P::Element* row[R];
  Vec total[R][N];
  UNROLL for (int i = 0; i < R; ++i) {
    row[i] = a[i];
    UNROLL for (int j = 0; j < N; ++j) total[i][j] = splat(0.0f);
  }
  constexpr int64_t LINE = 64 / sizeof(typename P::Element) / P::DEPTH;  // steps a cache line
  for (int64_t start = 0; start < steps; start += LINE) {
    if (ahead) ahead->fetch<R>(first, start / LINE);
    const int64_t end = start + LINE < steps ? start + LINE : steps;
    for (int64_t k = start; k < end; ++k) {
      decltype(P::weights(p)) w[N];
      UNROLL for (int j = 0; j < N; ++j) w[j] = P::weights(p + j * WIDTH * P::DEPTH);
      p += N * WIDTH * P::DEPTH;
      UNROLL for (int i = 0; i < R; ++i) {
        const auto factor = P::factor(row[i] + k * P::DEPTH);
        UNROLL for (int j = 0; j < N; ++j) total[i][j] = P::multiply(factor, w[j], total[i][j]);
      }
    }
  }
  UNROLL for (int i = 0; i < R; ++i)
    UNROLL for (int j = 0; j < N; ++j) store(sums + i * n + j * WIDTH, total[i][j]);
}

// a: `rows` pointers, a multiple of TILE_ROWS; sums [rows, n]; K a multiple of DEPTH.
template <class P>
void reduce(const typename P::Element* const* a, int64_t rows, int64_t K, const typename P::Element* p, float* sums,
            int64_t n, const Ahead* ahead = nullptr) {
  if constexpr (P::TILES) {
    reduce_on_tiles(a, rows, K, p, sums, n, 1);
  } else {
    for_panels(n, [&](int64_t column, auto vectors) INLINE_LAMBDA {
      for (int64_t i = 0; i < rows; i += TILE_ROWS)
        reduce_tile<P, TILE_ROWS, vectors.value>(a + i, K / P::DEPTH, p + column * K, sums + i * n + column, n, i,
                                                 column ? nullptr : ahead);
    });
  }
}

template <class P, int R, int N, class Epilogue>
INLINE void expand_tile(const typename P::Element* a, int64_t stride, int64_t steps, const typename P::Element* p,
                        const float* bias, int64_t row, int64_t column, const Epilogue& epilogue) {
  Vec total[R][N];
  UNROLL for (int j = 0; j < N; ++j) {
    const Vec start = bias ? load(bias + column + j * WIDTH) : splat(0.0f);
    UNROLL for (int i = 0; i < R; ++i) total[i][j] = start;
  }
  a += row * stride;
  for (int64_t k = 0; k < steps; ++k) {
    decltype(P::weights(p)) w[N];
    UNROLL for (int j = 0; j < N; ++j) w[j] = P::weights(p + j * WIDTH * P::DEPTH);
    p += N * WIDTH * P::DEPTH;
    UNROLL for (int i = 0; i < R; ++i) {
      const auto factor = P::factor(a + i * stride + k * P::DEPTH);
      UNROLL for (int j = 0; j < N; ++j) total[i][j] = P::multiply(factor, w[j], total[i][j]);
    }
  }
  UNROLL for (int i = 0; i < R; ++i) epilogue(row + i, column, total[i]);
}

// Row by row of tiles, the weights streaming from the second-level cache: panel by panel they would stay in the first, but
// the rows would come in pieces of 128 bytes from 48 places (forward at 12,608 tokens: 75% of the floor in place of 96%).
// a [rows, stride], its first K columns are multiplied; bias [D] or null. epilogue(row, column, Vec (&sums)[1 or 2]).
template <class P, class Epilogue>
void expand(const typename P::Element* a, int64_t stride, int64_t rows, int64_t K, const typename P::Element* p,
            int64_t D, const float* bias, const Epilogue& epilogue) {
  if constexpr (P::TILES) {
    expand_on_tiles(a, stride, rows, K, p, D, bias, epilogue);
  } else {
    for (int64_t i = 0; i < rows; i += TILE_ROWS)
      for_panels(D, [&](int64_t column, auto vectors) INLINE_LAMBDA {
        expand_tile<P, TILE_ROWS, vectors.value>(a, stride, K / P::DEPTH, p + column * K, bias, i, column, epilogue);
      });
  }
}

template <class P, int R, int N>
INLINE void collect_tile(const typename P::Element* const* a, int64_t steps, int64_t d, const typename P::Element* b,
                         float* total, int64_t n) {
  Vec sums[R][N];
  UNROLL for (int i = 0; i < R; ++i)
    UNROLL for (int j = 0; j < N; ++j) sums[i][j] = load(total + i * n + j * WIDTH);
  for (int64_t k = 0; k < steps; ++k) {
    const typename P::Element* row = a[k] + d * P::DEPTH;
    decltype(P::weights(b)) w[N];
    UNROLL for (int j = 0; j < N; ++j) w[j] = P::weights(b + j * WIDTH * P::DEPTH);
    b += n * P::DEPTH;
    UNROLL for (int i = 0; i < R; ++i) {
      const auto factor = P::factor(row + i * P::DEPTH);
      UNROLL for (int j = 0; j < N; ++j) sums[i][j] = P::multiply(factor, w[j], sums[i][j]);
    }
  }
  UNROLL for (int i = 0; i < R; ++i)
    UNROLL for (int j = 0; j < N; ++j) store(total + i * n + j * WIDTH, sums[i][j]);
}

// a: pointers to `steps` groups of DEPTH rows, b [steps, n, DEPTH], total [D, n].
template <class P>
void collect(const typename P::Element* const* a, int64_t steps, int64_t D, const typename P::Element* b, float* total,
             int64_t n) {
  for_panels(n, [&](int64_t column, auto vectors) INLINE_LAMBDA {
    for (int64_t d = 0; d < D; d += TILE_COLUMNS)
      collect_tile<P, TILE_COLUMNS, vectors.value>(a, steps, d, b + column * P::DEPTH, total + d * n + column, n);
  });
}

template <int N, class T>
INLINE void add_columns(const T* const* a, int64_t rows, int64_t d, const float* factor, float* total) {
  Vec sums[N];
  UNROLL for (int j = 0; j < N; ++j) sums[j] = load(total + d + j * WIDTH);
  for (int64_t i = 0; i < rows; ++i) {
    const Vec f = splat(factor ? factor[i] : 1.0f);
    UNROLL for (int j = 0; j < N; ++j) sums[j] = fma(f, load(a[i] + d + j * WIDTH), sums[j]);
  }
  UNROLL for (int j = 0; j < N; ++j) store(total + d + j * WIDTH, sums[j]);
}

// total[D] += factor[row] * a[row, D] over the rows; factor null: 1. Eight vectors at a time, since each waits for itself.
template <class T>
void add_rows(const T* const* a, int64_t rows, int64_t D, const float* factor, float* total) {
  int64_t d = 0;
  for (; d + 8 * WIDTH <= D; d += 8 * WIDTH) add_columns<8>(a, rows, d, factor, total);
  for (; d < D; d += 16) add_columns<16 / WIDTH>(a, rows, d, factor, total);
}
