// Sixteen floats in a zmm register; needs AVX-512 F, BW, DQ and VL. With RMADAPTER_BF16 also the bf16 instructions.

constexpr int WIDTH = 16;
constexpr int TILE_ROWS = 12;  // 24 sums, 2 weights, 1 factor: 27 of 32 registers
constexpr int TILE_COLUMNS = 8;  // D is a multiple of 16, not of 12

using Vec = __m512;

INLINE Vec splat(float value) { return _mm512_set1_ps(value); }
INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
INLINE Vec load(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
INLINE Vec load(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
INLINE void store(BFloat16* p, Vec v) {
#ifdef RMADAPTER_BF16
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
#else
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  rounded = _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000)), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
#endif
}
INLINE void store(Half* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
INLINE Vec abs(Vec a) { return _mm512_abs_ps(a); }
INLINE Vec where_positive(Vec x, Vec yes, Vec no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), no, yes);
}
INLINE Vec round(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE Vec power_of_two(Vec n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
INLINE float sum(Vec a) { return _mm512_reduce_add_ps(a); }
// Two vectors side by side in one instruction.
#ifdef RMADAPTER_BF16
INLINE void store_all(BFloat16* p, const Vec (&v)[2]) {
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(v[1], v[0]));
}
#endif
INLINE void transpose(Vec (&rows)[16]) {
  Vec a[16];
  UNROLL for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  // Four by four within each quarter of a vector: column 4 quarter + j of rows 4 group and on.
  Vec b[16];
  UNROLL for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  UNROLL for (int j = 0; j < 4; ++j) {  // quarters of four groups
    const Vec even = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x88), odd = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xdd);
    const Vec even2 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0x88);
    const Vec odd2 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0xdd);
    rows[j] = _mm512_shuffle_f32x4(even, even2, 0x88);
    rows[j + 8] = _mm512_shuffle_f32x4(even, even2, 0xdd);
    rows[j + 4] = _mm512_shuffle_f32x4(odd, odd2, 0x88);
    rows[j + 12] = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
  }
}
#ifdef RMADAPTER_BF16
// Both rounded to bf16, element by element side by side, as the bits of floats.
INLINE Vec pair_up(Vec even, Vec odd) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
  return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}
#endif
INLINE void prefetch_near(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
