// The register tile of the GEMM: 2 · mr accumulators, 2 registers for B, 1 broadcast of A; there are 32 registers with AVX-512 and
// 16 otherwise.
#pragma once

#include "cpu/gemm.h"
#include "cpu/kernels/vec.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

constexpr int64_t mr = width == 16 ? 12 : width == 8 ? 6 : 4;
constexpr int64_t nr = 2 * width;

// The tile of C is needed at the end.
static inline void prefetch_tile(const GemmTile& t) {
  const int64_t element = t.dtype == DType::f32 ? 4 : 2;
  for (int64_t i = 0; i < t.rows; ++i)
    for (int64_t byte = 0; byte < t.columns * element; byte += 64)
      __builtin_prefetch(static_cast<const char*>(t.c) + i * t.c_stride * element + byte, 1);
}

template <int64_t rows>
static inline __attribute__((always_inline)) void store_tile(const vf (&sums)[rows][2], const GemmTile& t) {
  const bool whole = t.rows == rows && t.columns == nr && t.diagonal + rows <= 1;
  if (whole && t.dtype != DType::f16) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int64_t j = 0; j < 2; ++j) {
        const int64_t at = i * t.c_stride + j * width;
        vf value = t.alpha * sums[i][j];
        if (t.addend != nullptr) value = t.alpha * sums[i][j] + load(t.addend + i * t.addend_stride + j * width);
        if (t.dtype == DType::f32) {
          store(static_cast<float*>(t.c) + at, value);
        } else {
          *reinterpret_cast<vh*>(static_cast<uint16_t*>(t.c) + at) = to_bf16(value);
        }
      }
    }
    return;
  }
  float tile[rows][nr];
#pragma GCC unroll 16
  for (int64_t i = 0; i < rows; ++i) {
    store(tile[i], sums[i][0]);
    store(tile[i] + width, sums[i][1]);
  }
  for (int64_t i = 0; i < t.rows; ++i) {
    const int64_t first = i + t.diagonal < 0 ? 0 : i + t.diagonal;
    if (first >= t.columns) return;
    const float* addend = t.addend + i * t.addend_stride;
    for (int64_t j = first; j < t.columns; ++j)
      tile[i][j] = t.addend == nullptr ? t.alpha * tile[i][j] : t.alpha * tile[i][j] + addend[j];
    char* c = static_cast<char*>(t.c) + (i * t.c_stride + first) * (t.dtype == DType::f32 ? 4 : 2);
    span_from_float(c, t.dtype, tile[i] + first, t.columns - first);
  }
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
