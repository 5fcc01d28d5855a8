// 16-bit floats by their bits, rounded to nearest even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulation {

inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float from_bf16(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }
inline uint16_t to_bf16(float x) {
  const uint32_t bits = float_to_bits(x);
  if (std::isnan(x)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline float from_f16(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  float x = exponent == 0    ? std::ldexp(static_cast<float>(fraction), -24)
            : exponent == 31 ? (fraction == 0 ? INFINITY : NAN)
                             : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return h >> 15 ? -x : x;
}
inline uint16_t to_f16(float x) {
  const auto sign = static_cast<uint16_t>(float_to_bits(x) >> 16 & 0x8000u);
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) return 0x7fff;
  if (magnitude == 0) return sign;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  int exponent = 0;
  std::frexp(magnitude, &exponent);                                       // magnitude = f · 2^exponent, f in [0.5, 1)
  const int unit = exponent - 11 > -24 ? exponent - 11 : -24;             // of the last place
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -unit)));
  if (unit == -24) return static_cast<uint16_t>(sign | steps);            // 1024 steps are the first normal number
  return static_cast<uint16_t>(sign + ((unit + 25) << 10) + steps - 1024);  // 2048 steps carry into the exponent
}

}  // namespace emulation
