// The three products on the processor's matrix unit (AMX): eight tile registers of 16 rows x 64 bytes, and one instruction
// that multiplies 16 rows of 32 bf16 with 32 x 16 of them and adds to 16 x 16 floats. Tiles 0 to 3 are sums, 4 and 5 the
// left factors, 6 and 7 the right ones: 32 rows x 32 columns at a time.
//
// A row of sums depends on its own row of the left factor alone, and adds along K in ascending order, whatever the rows
// beside it hold.

struct Tiles {
  using Element = BFloat16;
  static constexpr bool TILES = true;
  static constexpr int DEPTH = 2;  // weights are packed as for Pairs, of which a tile holds 16 steps
  static constexpr int K_STEP = 32;
  static constexpr int ROWS = 16;
  static constexpr int COLUMNS = 32;
};

static_assert(WIDTH == 16, "a row of a tile of sums is one vector");
constexpr int64_t TILE_ELEMENTS = 16 * 32;  // of bf16

// What _tile_loadconfig reads: every tile has 16 rows of 64 bytes.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Configures this thread's tiles, after storing what they were, which is another library's business.
INLINE void begin_tiles(char* before) {
  static_assert(sizeof(TileConfiguration) == 64, "the processor reads 64 bytes");
  static const TileConfiguration full;
  _tile_storeconfig(before);
  _tile_loadconfig(&full);
}

INLINE void end_tiles(const char* before) {
  if (before[0]) {
    _tile_loadconfig(before);
  } else {
    _tile_release();
  }
}

// The compiler does not know that tile loads read memory: what was stored before must be there.
INLINE void before_tile_loads() { asm volatile("" ::: "memory"); }

// Address sanitizer does not see what tile instructions touch; its build looks at the ends of every row first.
INLINE void expect_rows([[maybe_unused]] const void* p, [[maybe_unused]] int64_t stride, [[maybe_unused]] int count,
                        [[maybe_unused]] int bytes) {
#ifdef RMADAPTER_POISON
  for (int i = 0; i < count; ++i) {
    const volatile char* row = static_cast<const char*>(p) + i * stride;
    static_cast<void>(row[0]);
    static_cast<void>(row[bytes - 1]);
  }
#endif
}

// Tiles 4 and, with R = 2, 5: 16 R rows at `stride` bytes.
template <int R>
INLINE void load_left(const BFloat16* p, int64_t stride) {
  expect_rows(p, stride, 16 * R, 64);
  _tile_loadd(4, p, stride);
  if constexpr (R > 1) _tile_loadd(5, reinterpret_cast<const char*>(p) + 16 * stride, stride);
}

// Tiles 6 and, with N = 2, 7, which begins `second` elements after it.
template <int N>
INLINE void load_right(const BFloat16* p, int64_t stride, int64_t second) {
  expect_rows(p, stride, 16, 64);
  _tile_loadd(6, p, stride);
  if constexpr (N > 1) {
    expect_rows(p + second, stride, 16, 64);
    _tile_loadd(7, p + second, stride);
  }
}

template <int R, int N>
INLINE void clear_sums() {
  _tile_zero(0);
  if constexpr (N > 1) _tile_zero(1);
  if constexpr (R > 1) _tile_zero(2);
  if constexpr (R > 1 && N > 1) _tile_zero(3);
}

template <int R, int N>
INLINE void multiply_tiles() {
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (N > 1) _tile_dpbf16ps(1, 4, 7);
  if constexpr (R > 1) _tile_dpbf16ps(2, 5, 6);
  if constexpr (R > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
}

// Sums [16 R, 16 N] to and from memory with `stride` floats a row.
template <int R, int N>
INLINE void store_sums(float* p, int64_t stride) {
  expect_rows(p, 4 * stride, 16 * R, 64 * N);
  _tile_stored(0, p, 4 * stride);
  if constexpr (N > 1) _tile_stored(1, p + 16, 4 * stride);
  if constexpr (R > 1) _tile_stored(2, p + 16 * stride, 4 * stride);
  if constexpr (R > 1 && N > 1) _tile_stored(3, p + 16 * stride + 16, 4 * stride);
}

template <int R, int N>
INLINE void load_sums(const float* p, int64_t stride) {
  expect_rows(p, 4 * stride, 16 * R, 64 * N);
  _tile_loadd(0, p, 4 * stride);
  if constexpr (N > 1) _tile_loadd(1, p + 16, 4 * stride);
  if constexpr (R > 1) _tile_loadd(2, p + 16 * stride, 4 * stride);
  if constexpr (R > 1 && N > 1) _tile_loadd(3, p + 16 * stride + 16, 4 * stride);
}

// Calls f(first row, one or two tiles as an integral constant) for `rows` rows, a multiple of 16.
template <class F>
INLINE void for_tiles(int64_t rows, F f) {
  int64_t row = 0;
  for (; row + 32 <= rows; row += 32) f(row, std::integral_constant<int, 2>());
  if (row < rows) f(row, std::integral_constant<int, 1>());
}

// As `reduce`; the rows of a lie at one distance from each other, K and n are multiples of 32. With parts = 2 a is the sum of
// a[, 0 .. K] and a[, K .. 2 K].
INLINE void reduce_on_tiles(const BFloat16* const* a, int64_t rows, int64_t K, const BFloat16* p, float* sums, int64_t n,
                            int parts) {
  before_tile_loads();
  for_panels(n, [&](int64_t column, auto vectors) INLINE_LAMBDA {
    for_tiles(rows, [&](int64_t row, auto tiles) INLINE_LAMBDA {
      constexpr int R = tiles.value, N = vectors.value;
      const int64_t stride = reinterpret_cast<const char*>(a[row + 1]) - reinterpret_cast<const char*>(a[row]);
      clear_sums<R, N>();
      for (int part = 0; part < parts; ++part)
        for (int64_t k = 0; k < K; k += 32) {
          load_left<R>(a[row] + part * K + k, stride);
          load_right<N>(p + column * K + k * N * 16, 64 * N, 32);
          multiply_tiles<R, N>();
        }
      store_sums<R, N>(sums + row * n + column, n);
    });
  });
}

// As `expand`, K a multiple of 32. The unit works on a panel of columns while the epilogue takes the one before it, out of
// a buffer in the first-level cache.
template <class Epilogue>
void expand_on_tiles(const BFloat16* a, int64_t stride, int64_t rows, int64_t K, const BFloat16* p, int64_t D,
                     const float* bias, const Epilogue& epilogue) {
  alignas(64) float buffers[2][32 * PANEL];
  before_tile_loads();
  for_tiles(rows, [&](int64_t row, auto tiles) INLINE_LAMBDA {
    constexpr int R = tiles.value;
    const BFloat16* left = a + row * stride;
    const auto finish = [&](int64_t column, auto vectors, const float* sums) INLINE_LAMBDA {
      constexpr int N = vectors.value;
      Vec start[N];
      UNROLL for (int j = 0; j < N; ++j) start[j] = bias ? load(bias + column + j * WIDTH) : splat(0.0f);
      for (int64_t i = 0; i < 16 * R; ++i) {
        Vec total[N];
        UNROLL for (int j = 0; j < N; ++j) total[j] = add(start[j], load(sums + i * PANEL + j * WIDTH));
        epilogue(row + i, column, total);
      }
    };
    int turn = 0;
    load_left<R>(left, 2 * stride);
    for_panels(D, [&](int64_t column, auto vectors) INLINE_LAMBDA {
      constexpr int N = vectors.value;
      const BFloat16* right = p + column * K;
      clear_sums<R, N>();
      for (int64_t k = 0; k < K; k += 32) {
        if (K > 32) load_left<R>(left + k, 2 * stride);
        load_right<N>(right + k * N * 16, 64 * N, 32);
        multiply_tiles<R, N>();
      }
      store_sums<R, N>(buffers[turn], PANEL);
      turn ^= 1;
      if (column > 0) finish(column - PANEL, std::integral_constant<int, 2>(), buffers[turn]);
    });
    turn ^= 1;
    if (D % PANEL == 0) {
      finish(D - PANEL, std::integral_constant<int, 2>(), buffers[turn]);
    } else {
      finish(D - WIDTH, std::integral_constant<int, 1>(), buffers[turn]);
    }
  });
}

// total [n, stride] += b^T a, transposed against `collect`, so that not a but the narrow factor is: a as tiles
// [tokens / 32, D / 16] of neighbouring pairs of rows (interleave_tiles), b as [n, tokens] (transposed_factors). The number
// of tokens and n are multiples of 32.
INLINE void collect_on_tiles(const BFloat16* a, int64_t tokens, int64_t D, const BFloat16* b, float* total, int64_t n,
                             int64_t stride) {
  before_tile_loads();
  for (int64_t column = 0; column < n; column += 32)
    for_panels(D, [&](int64_t d, auto vectors) INLINE_LAMBDA {
      constexpr int N = vectors.value;
      float* sums = total + column * stride + d;
      load_sums<2, N>(sums, stride);
      for (int64_t t = 0; t < tokens; t += 32) {
        load_left<2>(b + column * tokens + t, 2 * tokens);
        load_right<N>(a + (t * D + 32 * d), 64, TILE_ELEMENTS);
        multiply_tiles<2, N>();
      }
      store_sums<2, N>(sums, stride);
    });
}

// A pair of rows [D] (odd null: zeros) as row `pair` of tiles [D / 16] of 16 pairs.
INLINE void interleave_tiles(const BFloat16* even, const BFloat16* odd, int64_t D, BFloat16* tiles, int64_t pair) {
  alignas(64) static constexpr uint16_t LOW[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                   8,  40, 9,  41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(LOW), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (int64_t d = 0; d < D; d += 32) {
    const __mmask32 there = D - d >= 32 ? 0xffffffffu : 0xffffu;
    const __m512i one = _mm512_maskz_loadu_epi16(there, even + d);
    const __m512i other = odd ? _mm512_maskz_loadu_epi16(there, odd + d) : _mm512_setzero_si512();
    BFloat16* to = tiles + d * 32 + pair * 32;
    _mm512_store_si512(to, _mm512_permutex2var_epi16(one, low, other));
    if (D - d >= 32) _mm512_store_si512(to + TILE_ELEMENTS, _mm512_permutex2var_epi16(one, high, other));
  }
}

// Tiles of the rows a; zeros follow up to a multiple of 32 rows, whose number it returns.
INLINE int64_t interleave_rows(const BFloat16* const* a, int64_t rows, int64_t D, BFloat16* to) {
  const int64_t tokens = (rows + 31) / 32 * 32;
  for (int64_t t = 0; t < tokens; t += 2) {
    BFloat16* tiles = to + t / 32 * 32 * D;
    const int64_t pair = t % 32 / 2;
    if (t < rows) {
      interleave_tiles(a[t], t + 1 < rows ? a[t + 1] : nullptr, D, tiles, pair);
    } else {
      for (int64_t d = 0; d < D; d += 16) store(reinterpret_cast<float*>(tiles + d * 32 + pair * 32), splat(0.0f));
    }
  }
  return tokens;
}

// values [rows, n], each row times its `factor` (null: 1), as bf16 [n, tokens]; zeros beyond `rows`. n: a multiple of 16.
INLINE void transposed_factors(const float* values, const float* factor, int64_t rows, int64_t n, BFloat16* to) {
  const int64_t tokens = (rows + 31) / 32 * 32;
  const auto row = [&](int64_t t, int64_t j) INLINE_LAMBDA {
    if (t >= rows) return splat(0.0f);
    const Vec value = load(values + t * n + j);
    return factor ? mul(splat(factor[t]), value) : value;
  };
  for (int64_t t = 0; t < tokens; t += 32)
    for (int64_t j = 0; j < n; j += WIDTH) {
      Vec pairs[WIDTH];
      for (int i = 0; i < WIDTH; ++i) pairs[i] = pair_up(row(t + 2 * i, j), row(t + 2 * i + 1, j));
      transpose(pairs);
      for (int i = 0; i < WIDTH; ++i) store(reinterpret_cast<float*>(to + (j + i) * tokens + t), pairs[i]);
    }
}
