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

INLINE void write(float* p, float value) { *p = value; }
INLINE void write(BFloat16* p, float value) { *p = to_bfloat16(value); }
INLINE void write(Half* p, float value) { *p = to_half(value); }

INLINE Matrix transposed(Matrix m) { return {m.data, m.column_stride, m.row_stride, m.dtype}; }

INLINE int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Part `part` of `parts` of the panels of matrix [K, n], zero-filled to padded_K rows and padded_n columns. The values
// are rounded to `dtype`, that of x.
template <class P>
void pack(const Matrix& matrix, int64_t K, int64_t n, int64_t padded_K, int64_t padded_n, Dtype dtype,
          typename P::Element* to, int part, int parts) {
  for_panels(padded_n, [&](int64_t column, auto vectors) {
    constexpr int64_t width = vectors.value * WIDTH;
    const int64_t steps = padded_K / P::DEPTH;
    const int64_t valid = n - column < width ? n - column : width;
    for (int64_t step = steps * part / parts; step < steps * (part + 1) / parts; ++step) {
      typename P::Element* row = to + column * padded_K + step * width * P::DEPTH;
      for (int64_t k = 0; k < P::DEPTH; ++k) {
        const int64_t source = step * P::DEPTH + k;
        const char* p = matrix.data + source * matrix.row_stride + column * matrix.column_stride;
        const int64_t count = source < K ? valid : 0;
        if (matrix.dtype == Dtype::f32 && dtype == Dtype::f32 && matrix.column_stride == 4) {
          for (int64_t j = 0; j < count; ++j) write(row + j * P::DEPTH + k, reinterpret_cast<const float*>(p)[j]);
        } else {
          for (int64_t j = 0; j < count; ++j)
            write(row + j * P::DEPTH + k, rounded(read(p + j * matrix.column_stride, matrix.dtype), dtype));
        }
        for (int64_t j = count; j < width; ++j) write(row + j * P::DEPTH + k, 0.0f);
      }
    }
  });
}

// A bias [n] as floats, rounded like the weights, zero-filled to padded_n; zeros where it is absent.
INLINE void pack_vector(const Matrix& vector, int64_t n, int64_t padded_n, Dtype dtype, float* to) {
  for (int64_t j = 0; j < padded_n; ++j)
    to[j] = j < n && vector.data ? rounded(read(vector.data + j * vector.column_stride, vector.dtype), dtype) : 0.0f;
}

// Adds nothing, multiplies by `factor`: a gradient [rows, columns] from total [rows, stride], or from its transpose.
INLINE void write_gradient(const Matrix& to, int64_t rows, int64_t columns, const float* total, int64_t row_step,
                           int64_t column_step, float factor, int part, int parts) {
  if (!to.data) return;
  for (int64_t i = rows * part / parts; i < rows * (part + 1) / parts; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      char* p = to.data + i * to.row_stride + j * to.column_stride;
      const float value = factor * total[i * row_step + j * column_step];
      switch (to.dtype) {
        case Dtype::bf16: write(reinterpret_cast<BFloat16*>(p), value); break;
        case Dtype::f16: write(reinterpret_cast<Half*>(p), value); break;
        default: write(reinterpret_cast<float*>(p), value);
      }
    }
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
void point_to_rows(T* block, int64_t stride, int64_t padded, T** to) {
  for (int64_t i = 0; i < padded; ++i) to[i] = block + i * stride;
}

template <class To, class From>
INLINE void convert_row(const From* from, To* to, int64_t D) {
  for (int64_t d = 0; d < D; d += WIDTH) store(to + d, load(from + d));
}

// Calls f with a null pointer of the type that `dtype` names.
template <class F>
INLINE void with_type(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::bf16: f(static_cast<BFloat16*>(nullptr)); break;
    case Dtype::f16: f(static_cast<Half*>(nullptr)); break;
    default: f(static_cast<float*>(nullptr));
  }
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
