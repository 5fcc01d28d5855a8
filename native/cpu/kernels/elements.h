// Vectors of elements that lie one after another: `load(p, left)` gives the next ones at p, of which `left` exist, and zero behind.
#pragma once

#include "cpu/kernels/vec.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

// The first `count` 16-bit elements, zero behind them.
static inline vh load_halves(const char* p, int64_t count) {
  if (count >= width) return *reinterpret_cast<const vh*>(p);
#if defined(__AVX512F__)
  return (vh)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p);
#else
  vh v = {};
  memcpy(&v, p, static_cast<size_t>(count) * 2);
  return v;
#endif
}

struct FloatElements {
  static constexpr int64_t bytes = 4;
  static vf load(const char* p, int64_t left) {
    const auto* x = reinterpret_cast<const float*>(p);
    return left >= width ? SPARSEGPT_ISA::load(x) : load_part(x, left);
  }
};

// bfloat16 elements as float32.
struct BfloatElements {
  static constexpr int64_t bytes = 2;
  static vf load(const char* p, int64_t left) { return bf16_to_float(load_halves(p, left)); }
};

#if defined(__AVX512BF16__)
// bfloat16 elements as they are, two in each lane.
struct PairElements {
  static constexpr int64_t bytes = 2;
  static vf load(const char* p, int64_t left) {
    if (left >= 2 * width) return SPARSEGPT_ISA::load(reinterpret_cast<const float*>(p));
    vf v = {};
    memcpy(&v, p, static_cast<size_t>(left) * 2);
    return v;
  }
};
#endif

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
