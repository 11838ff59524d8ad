// 16-bit floats as bits, and their conversions one at a time.

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

INLINE float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

INLINE uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

INLINE float to_float(float value) { return value; }

INLINE float to_float(BFloat16 value) { return from_bits(uint32_t{value.bits} << 16); }

INLINE BFloat16 to_bfloat16(float value) {
  const uint32_t bits = to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t{0x7fc0}};  // not a number
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

INLINE float to_float(Half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x400u) return from_bits(sign | ((magnitude << 13) + 0x38000000u));
  return from_bits(sign | to_bits(static_cast<float>(magnitude) * 0x1p-24f));  // below 2^-14
}

INLINE Half to_half(float value) {
  const uint32_t bits = to_bits(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and more round to infinity
  if (magnitude >= 0x38800000u) {
    return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13))};
  }
  // Below 2^-14: adding 0.5 leaves the 10 bits of a denormal, rounded, at the end of the significand.
  return {static_cast<uint16_t>(sign | (to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f)))};
}
