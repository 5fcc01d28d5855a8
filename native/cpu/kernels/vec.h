// One vector type for the width of the level being compiled, on GCC's vector extensions. Everything is static or in the
// level's own namespace, so that no wide-instruction code can be picked by the linker for a narrower level.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__) || defined(__AVX512F__)
#if defined(__GNUC__) && !defined(__clang__)
// Before GCC 13 its AVX-512 intrinsics warn of their own placeholder for a result without a mask.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

#include "core/dtype.h"

#ifndef SPARSEGPT_ISA
#error "compile with -DSPARSEGPT_ISA=baseline, avx2, avx512, avx512bf16 or amx"
#endif

namespace sparsegpt::cpu::SPARSEGPT_ISA {

#if defined(__AVX512F__)
constexpr int64_t width = 16;
#elif defined(__AVX2__)
constexpr int64_t width = 8;
#else
constexpr int64_t width = 4;
#endif

typedef float vf __attribute__((vector_size(width * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(width * 4), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(width * 4), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(width * 2), aligned(2), may_alias));

// Of two elements of 16 bits for each float too, which lie at even addresses.
typedef float vf_at_even __attribute__((vector_size(width * 4), aligned(2), may_alias));

static inline vf load(const float* p) { return *reinterpret_cast<const vf_at_even*>(p); }
static inline void store(float* p, vf v) { *reinterpret_cast<vf*>(p) = v; }
static inline vf broadcast(float x) { return x - vf{}; }
static inline vf select(vi mask, vf a, vf b) { return mask ? a : b; }
// When one is NaN the result is b.
static inline vf vmax(vf a, vf b) { return a > b ? a : b; }
static inline vf vmin(vf a, vf b) { return a < b ? a : b; }
static inline vf as_float(vi v) { return reinterpret_cast<vf&>(v); }
static inline vi as_int(vf v) { return reinterpret_cast<vi&>(v); }

static inline float horizontal_sum(vf v) {
  float lanes[width];
  store(lanes, v);
  for (int64_t step = width / 2; step > 0; step /= 2)
    for (int64_t i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
}

static inline float horizontal_max(vf v) {
  float lanes[width];
  store(lanes, v);
  float best = lanes[0];
  for (int64_t i = 1; i < width; ++i) best = lanes[i] > best ? lanes[i] : best;
  return best;
}

// The first `count` elements of p, zero elsewhere, without touching what lies behind them.
static inline vf load_part(const float* p, int64_t count) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#else
  vf v = {};
  memcpy(&v, p, static_cast<size_t>(count) * 4);
  return v;
#endif
}
static inline void store_part(float* p, vf v, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
#else
  memcpy(p, &v, static_cast<size_t>(count) * 4);
#endif
}

// Nearest integer, ties to even, for |x| < 2^22.
static inline vf round_even(vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const float magic = 12582912.0f;  // 1.5 * 2^23
  return (x + magic) - magic;
#endif
}

// 2^n exp(r) for whole n in [-126, 127] and |r| a little above ln(2) / 2 at most.
static inline vf scaled_exp(vf n, vf r) {
  vf p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
#if defined(__AVX512F__)
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  const vi exponent = (__builtin_convertvector(n, vi) + 127) << 23;
  return p * as_float(exponent);
#endif
}

// x - n ln(2), in two steps of which the first is exact.
static inline vf exp_remainder(vf x, vf n) { return x - n * 0.693359375f - n * -2.12194440e-4f; }

// exp(x) to about 1 ulp; 0 below -87.3, inf-free (clamped) above 88.3; NaN stays NaN.
static inline vf vexp(vf x) {
  const vi underflow = x < -87.3f;
  x = vmin(broadcast(88.3f), x);
#if !defined(__AVX512F__)
  x = vmax(broadcast(-87.3f), x);  // where the power of two does not saturate
#endif
  const vf n = round_even(x * 1.44269504088896341f);
  return select(underflow, vf{}, scaled_exp(n, exp_remainder(x, n)));
}

// The share of the standard normal distribution above |x|, erfc(|x| / √2) / 2, to 4e-7 of it; 0 above 13.2; NaN stays NaN.
static inline vf normal_tail(vf x) {
  const vf magnitude = vmax(-x, x), a = vmin(broadcast(13.2f), magnitude);
  // exp(-a² / 2), with the square split into an exact part and a small rest.
  const vf high = as_float(as_int(a) & ~0xfff), square = high * high * -0.5f, rest = (high - a) * (high + a) * 0.5f;
  const vf n = round_even((square + rest) * 1.44269504088896341f);
  const vf e = scaled_exp(n, exp_remainder(square, n) + rest);
  // The quotient of the two varies slowly, about 1 / (a √(2π)): a minimax polynomial of (a - 3.5) / (a + 3.5), over a + 3.5.
  const vf inverse = 1.0f / (a + 3.5f), t = (a - 3.5f) * inverse;
  vf p = broadcast(1.1274307121e-04f);
  p = p * t + 4.2567052923e-04f;
  p = p * t - 4.9465557986e-04f;
  p = p * t - 3.1778058054e-03f;
  p = p * t + 6.4924081953e-03f;
  p = p * t + 1.7406912152e-02f;
  p = p * t - 1.1605289461e-01f;
  p = p * t + 3.1542500948e-01f;
  p = p * t - 5.6556175132e-01f;
  p = p * t + 7.4441607464e-01f;
  return select(magnitude > 13.2f, vf{}, p * inverse * e);
}

// tanh(x) to a few ulp; NaN stays NaN.
static inline vf vtanh(vf x) {
  const vf magnitude = vmax(-x, x), square = x * x;
  const vf e = vexp(-2.0f * magnitude);
  const vf far = (1.0f - e) / (1.0f + e);
  // Near 0 the difference 1 - e loses digits: the Taylor series there.
  const vf near = x - x * square * (0.333333333f - square * (0.133333333f - square * 0.0539682540f));
  return select(magnitude < 0.1f, near, select(x < 0.0f, -far, far));
}

// --- float16 and bfloat16 ---------------------------------------------------------------------------------------------

static inline float bf16_to_float(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

// Round to nearest even; NaN stays NaN.
static inline uint16_t float_to_bf16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Compilers split these two conversions.
static inline vu widen(vh v) {
#if defined(__AVX512F__)
  return (vu)_mm512_cvtepu16_epi32((__m256i)v);
#else
  return __builtin_convertvector(v, vu);
#endif
}
static inline vh narrow(vu v) {
#if defined(__AVX512F__)
  return (vh)_mm512_cvtepi32_epi16((__m512i)v);
#else
  return __builtin_convertvector(v, vh);
#endif
}

static inline vf bf16_to_float(vh v) {
  const vu bits = widen(v) << 16;
  return reinterpret_cast<const vf&>(bits);
}

static inline vh to_bf16(vf v) {
  const vu bits = reinterpret_cast<const vu&>(v);
  const vu rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return narrow(v == v ? rounded : (bits >> 16 | 0x40u));
}

#if defined(__AVX512BF16__)
// Two products of bfloat16 elements in each lane.
//
// VDPBF16PS takes denormal inputs as zero and flushes denormal results, always rounds to nearest even and raises no
// exceptions, whatever MXCSR says.
static inline vf add_pair_products(vf sum, vf x, vf y) {
  return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
}
#endif

static inline float f16_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00u) {
    bits = sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  } else if (magnitude >= 0x400u) {
    bits = sign | ((magnitude << 13) + (112u << 23));
  } else {
    const float subnormal = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // 2^-24
    memcpy(&bits, &subnormal, 4);
    bits |= sign;
  }
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static inline uint16_t float_to_f16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
  if (bits < 0x38800000u) {  // subnormal: let the FPU round
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    const float shifted = magnitude + 0.5f;  // ulp of [0.5, 1) is 2^-24
    uint32_t result;
    memcpy(&result, &shifted, 4);
    return static_cast<uint16_t>(sign | (result - 0x3f000000u));
  }
  const uint32_t odd = (bits >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((bits + 0xc8000fffu + odd) >> 13));
}

static inline float load_scalar(const void* p, int64_t index, DType dtype) {
  switch (dtype) {
    case DType::bf16: return bf16_to_float(static_cast<const uint16_t*>(p)[index]);
    case DType::f16: return f16_to_float(static_cast<const uint16_t*>(p)[index]);
    default: return static_cast<const float*>(p)[index];
  }
}

static inline void span_to_float(float* out, const void* in, DType dtype, int64_t count) {
  const auto* half = static_cast<const uint16_t*>(in);
  int64_t i = 0;
  switch (dtype) {
    case DType::bf16:
      for (; i + width <= count; i += width) store(out + i, bf16_to_float(*reinterpret_cast<const vh*>(half + i)));
      for (; i < count; ++i) out[i] = bf16_to_float(half[i]);
      break;
    case DType::f16:
#if defined(__F16C__)
      for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i))));
#endif
      for (; i < count; ++i) out[i] = f16_to_float(half[i]);
      break;
    default: memcpy(out, in, static_cast<size_t>(count) * 4);
  }
}

static inline void span_from_float(void* out, DType dtype, const float* in, int64_t count) {
  auto* half = static_cast<uint16_t*>(out);
  int64_t i = 0;
  switch (dtype) {
    case DType::bf16:
      for (; i + width <= count; i += width) *reinterpret_cast<vh*>(half + i) = to_bf16(load(in + i));
      for (; i < count; ++i) half[i] = float_to_bf16(in[i]);
      break;
    case DType::f16:
#if defined(__F16C__)
      for (; i + 8 <= count; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(half + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
      for (; i < count; ++i) half[i] = float_to_f16(in[i]);
      break;
    default: memcpy(out, in, static_cast<size_t>(count) * 4);
  }
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
