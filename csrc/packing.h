// Between the tensors' own layouts and those of the products: weights, rows, gradients.

INLINE float read(const char* p, Dtype dtype) {
  switch (dtype) {
    case Dtype::bf16: return to_float(*reinterpret_cast<const BFloat16*>(p));
    case Dtype::f16: return to_float(*reinterpret_cast<const Half*>(p));
    default: return *reinterpret_cast<const float*>(p);
  }
}

INLINE float rounded(float value, Dtype to) {
  switch (to) {
    case Dtype::bf16: return to_float(to_bfloat16(value));
    case Dtype::f16: return to_float(to_half(value));
    default: return value;
  }
}

INLINE void write(char* p, Dtype dtype, float value) {
  switch (dtype) {
    case Dtype::bf16: *reinterpret_cast<BFloat16*>(p) = to_bfloat16(value); break;
    case Dtype::f16: *reinterpret_cast<Half*>(p) = to_half(value); break;
    default: *reinterpret_cast<float*>(p) = value;
  }
}

INLINE int64_t size_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// Calls f with a null pointer of the type that `dtype` names.
template <class F>
INLINE void with_type(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::bf16: f(static_cast<BFloat16*>(nullptr)); break;
    case Dtype::f16: f(static_cast<Half*>(nullptr)); break;
    default: f(static_cast<float*>(nullptr));
  }
}

INLINE Matrix transposed(Matrix m) { return {m.data, m.column_stride, m.row_stride, m.dtype}; }

INLINE int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Rows row .. row + WIDTH of `columns` columns from `column` on, zeros where `rows` rows or the columns end. Whole blocks of
// a matrix whose rows or columns are contiguous are read a vector at a time.
INLINE void load_block(const Matrix& m, int64_t row, int64_t column, int64_t rows, int64_t columns, Vec (&to)[WIDTH]) {
  const char* base = m.data + row * m.row_stride + column * m.column_stride;
  const int64_t size = size_of(m.dtype);
  const bool whole = rows >= WIDTH && columns >= WIDTH;
  if (whole && (m.column_stride == size || m.row_stride == size)) {
    const bool across = m.column_stride != size;
    const int64_t stride = across ? m.column_stride : m.row_stride;
    with_type(m.dtype, [&](auto* kind) INLINE_LAMBDA {
      using T = std::remove_pointer_t<decltype(kind)>;
      for (int i = 0; i < WIDTH; ++i) to[i] = load(reinterpret_cast<const T*>(base + i * stride));
    });
    if (across) transpose(to);
    return;
  }
  float values[WIDTH][WIDTH] = {};
  for (int64_t i = 0; i < rows && i < WIDTH; ++i)
    for (int64_t j = 0; j < columns && j < WIDTH; ++j)
      values[i][j] = read(base + i * m.row_stride + j * m.column_stride, m.dtype);
  for (int i = 0; i < WIDTH; ++i) to[i] = load(values[i]);
}

// The opposite; changes `block`.
INLINE void store_block(const Matrix& m, int64_t row, int64_t column, int64_t rows, int64_t columns, Vec (&block)[WIDTH]) {
  char* base = m.data + row * m.row_stride + column * m.column_stride;
  const int64_t size = size_of(m.dtype);
  const bool whole = rows >= WIDTH && columns >= WIDTH;
  if (whole && (m.column_stride == size || m.row_stride == size)) {
    const bool across = m.column_stride != size;
    const int64_t stride = across ? m.column_stride : m.row_stride;
    if (across) transpose(block);
    with_type(m.dtype, [&](auto* kind) INLINE_LAMBDA {
      using T = std::remove_pointer_t<decltype(kind)>;
      for (int i = 0; i < WIDTH; ++i) store(reinterpret_cast<T*>(base + i * stride), block[i]);
    });
    return;
  }
  float values[WIDTH][WIDTH];
  for (int i = 0; i < WIDTH; ++i) store(values[i], block[i]);
  for (int64_t i = 0; i < rows && i < WIDTH; ++i)
    for (int64_t j = 0; j < columns && j < WIDTH; ++j)
      write(base + i * m.row_stride + j * m.column_stride, m.dtype, values[i][j]);
}

template <class T>
INLINE Vec rounded(Vec value) {
  T stored[WIDTH];
  store(stored, value);
  return load(stored);
}

// Steps of a panel of packed weights, `stride` elements apart, from `count` rows of one vector.
INLINE void write_steps(const Vec (&rows)[WIDTH], int64_t count, int64_t stride, float* to) {
  for (int64_t k = 0; k < WIDTH && k < count; ++k) store(to + k * stride, rows[k]);
}
#ifdef RMADAPTER_BF16
INLINE void write_steps(const Vec (&rows)[WIDTH], int64_t count, int64_t stride, BFloat16* to) {
  for (int64_t k = 0; k < WIDTH && k < count; k += 2)
    store(reinterpret_cast<float*>(to + k / 2 * stride), pair_up(rows[k], rows[k + 1]));
}
#endif

// Part `part` of `parts` of the panels of matrix [K, n], zero-filled to padded_K rows and padded_n columns. The values
// are rounded to `dtype`, that of x.
template <class P>
void pack(const Matrix& matrix, int64_t K, int64_t n, int64_t padded_K, int64_t padded_n, Dtype dtype,
          typename P::Element* to, int part, int parts) {
  const int64_t blocks = (padded_K + WIDTH - 1) / WIDTH;
  for_panels(padded_n, [&](int64_t column, auto vectors) {
    constexpr int64_t step = vectors.value * WIDTH * P::DEPTH;
    for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block) {
      const int64_t k = block * WIDTH;
      for (int j = 0; j < vectors.value; ++j) {
        Vec rows[WIDTH];
        const int64_t first = column + j * WIDTH;
        load_block(matrix, k, first, K - k, n - first, rows);
        with_type(dtype, [&](auto* kind) INLINE_LAMBDA {
          for (int i = 0; i < WIDTH; ++i) rows[i] = rounded<std::remove_pointer_t<decltype(kind)>>(rows[i]);
        });
        write_steps(rows, padded_K - k, step, to + column * padded_K + k / P::DEPTH * step + j * WIDTH * P::DEPTH);
      }
    }
  });
}

// A bias [n] as floats, rounded like the weights, zero-filled to padded_n; zeros where it is absent.
INLINE void pack_vector(const Matrix& vector, int64_t n, int64_t padded_n, Dtype dtype, float* to) {
  int64_t j = 0;
  if (vector.data && vector.column_stride == size_of(vector.dtype))
    with_type(vector.dtype, [&](auto* from) INLINE_LAMBDA {
      with_type(dtype, [&](auto* kind) INLINE_LAMBDA {
        using From = std::remove_pointer_t<decltype(from)>;
        for (; j + WIDTH <= n; j += WIDTH)
          store(to + j, rounded<std::remove_pointer_t<decltype(kind)>>(load(reinterpret_cast<const From*>(vector.data) + j)));
      });
    });
  for (; j < padded_n; ++j)
    to[j] = j < n && vector.data ? rounded(read(vector.data + j * vector.column_stride, vector.dtype), dtype) : 0.0f;
}

// The gradient of a bias [n]: `factor` times `total`.
INLINE void write_vector_gradient(const Matrix& to, int64_t n, const float* total, float factor) {
  if (!to.data) return;
  int64_t j = 0;
  if (to.column_stride == size_of(to.dtype))
    with_type(to.dtype, [&](auto* kind) INLINE_LAMBDA {
      auto* p = reinterpret_cast<decltype(kind)>(to.data);
      for (; j + WIDTH <= n; j += WIDTH) store(p + j, mul(splat(factor), load(total + j)));
    });
  for (; j < n; ++j) write(to.data + j * to.column_stride, to.dtype, factor * total[j]);
}

// Part `part` of `parts` of a gradient [rows, columns]: `factor` times `total`.
INLINE void write_gradient(const Matrix& to, int64_t rows, int64_t columns, const float* total, int64_t row_step,
                           int64_t column_step, float factor, int part, int parts) {
  if (!to.data) return;
  const Matrix from = {reinterpret_cast<char*>(const_cast<float*>(total)), 4 * row_step, 4 * column_step, Dtype::f32};
  const int64_t blocks = (rows + WIDTH - 1) / WIDTH;
  for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block)
    for (int64_t column = 0; column < columns; column += WIDTH) {
      const int64_t row = block * WIDTH;
      Vec values[WIDTH];
      load_block(from, row, column, rows - row, columns - column, values);
      for (int i = 0; i < WIDTH; ++i) values[i] = mul(splat(factor), values[i]);
      store_block(to, row, column, rows - row, columns - column, values);
    }
}

INLINE char* row_of(const Rows& rows, int64_t m) {
  return rows.base + (m / rows.inner) * rows.outer_stride + (m % rows.inner) * rows.inner_stride;
}

// Pointers to rows first .. first + count, the last one repeated up to `padded`, so that tiles are always full.
template <class T>
void point_to_rows(const Rows& rows, int64_t first, int64_t count, int64_t padded, T** to) {
  for (int64_t i = 0; i < padded; ++i)
    to[i] = reinterpret_cast<T*>(row_of(rows, first + (i < count ? i : count - 1)));
}

template <class T>
INLINE void point_to_rows(T* block, int64_t stride, int64_t padded, T** to) {
  for (int64_t i = 0; i < padded; ++i) to[i] = block + i * stride;
}

template <class To, class From>
INLINE void convert_row(const From* from, To* to, int64_t D) {
  for (int64_t d = 0; d < D; d += WIDTH) store(to + d, load(from + d));
}

#ifdef RMADAPTER_BF16
// Two rows [D] as pairs [D, 2].
INLINE void interleave(const BFloat16* even, const BFloat16* odd, int64_t D, BFloat16* to) {
  for (int64_t d = 0; d < D; d += 16) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(even + d)));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd + d)));
    _mm512_storeu_si512(to + 2 * d, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
}
#endif
