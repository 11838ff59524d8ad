// Four floats in an array: what any compiler takes, and vectorises as well as it can.
// Included inside an instruction set's own namespace, like its siblings; they all give the same names.

constexpr int WIDTH = 4;
constexpr int TILE_ROWS = 4;
constexpr int TILE_COLUMNS = 4;

struct Vec {
  float lane[WIDTH];
};

template <class F>
INLINE Vec map(F f) {
  Vec result;
  for (int i = 0; i < WIDTH; ++i) result.lane[i] = f(i);
  return result;
}

INLINE Vec splat(float value) {
  return map([=](int) { return value; });
}
INLINE Vec load(const float* p) {
  return map([=](int i) { return p[i]; });
}
INLINE Vec load(const BFloat16* p) {
  return map([=](int i) { return to_float(p[i]); });
}
INLINE Vec load(const Half* p) {
  return map([=](int i) { return to_float(p[i]); });
}
INLINE void store(float* p, Vec v) {
  for (int i = 0; i < WIDTH; ++i) p[i] = v.lane[i];
}
INLINE void store(BFloat16* p, Vec v) {
  for (int i = 0; i < WIDTH; ++i) p[i] = to_bfloat16(v.lane[i]);
}
INLINE void store(Half* p, Vec v) {
  for (int i = 0; i < WIDTH; ++i) p[i] = to_half(v.lane[i]);
}
INLINE Vec add(Vec a, Vec b) {
  return map([&](int i) { return a.lane[i] + b.lane[i]; });
}
INLINE Vec sub(Vec a, Vec b) {
  return map([&](int i) { return a.lane[i] - b.lane[i]; });
}
INLINE Vec mul(Vec a, Vec b) {
  return map([&](int i) { return a.lane[i] * b.lane[i]; });
}
INLINE Vec div(Vec a, Vec b) {
  return map([&](int i) { return a.lane[i] / b.lane[i]; });
}
INLINE Vec fma(Vec a, Vec b, Vec c) {  // a * b + c
  return map([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
// b where one of both is not a number.
INLINE Vec min(Vec a, Vec b) {
  return map([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
INLINE Vec max(Vec a, Vec b) {
  return map([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
INLINE Vec abs(Vec a) {
  return map([&](int i) { return a.lane[i] < 0 ? -a.lane[i] : a.lane[i]; });
}
INLINE Vec where_positive(Vec x, Vec yes, Vec no) {
  return map([&](int i) { return x.lane[i] > 0 ? yes.lane[i] : no.lane[i]; });
}
INLINE Vec round(Vec a) {  // for |a| < 2^22
  return map([&](int i) { return (a.lane[i] + 12582912.0f) - 12582912.0f; });
}
INLINE Vec power_of_two(Vec n) {  // n whole, -126 to 127
  return map([&](int i) {
    const int32_t bits = (static_cast<int32_t>(n.lane[i]) + 127) << 23;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  });
}
INLINE float sum(Vec a) {
  float total = 0;
  for (int i = 0; i < WIDTH; ++i) total += a.lane[i];
  return total;
}
INLINE void transpose(Vec (&rows)[WIDTH]) {
  for (int i = 0; i < WIDTH; ++i)
    for (int j = 0; j < i; ++j) {
      const float kept = rows[i].lane[j];
      rows[i].lane[j] = rows[j].lane[i];
      rows[j].lane[i] = kept;
    }
}
INLINE void prefetch_near(const void*) {}
INLINE void prefetch(const void*) {}
