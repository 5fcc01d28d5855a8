// Packing and the register tile of the GEMM of two bfloat16 operands, on VDPBF16PS. The panels are those of gemm.cpp with
// pairs of elements that follow each other along the depth as their 32-bit units: C[mr, nr] += alpha * (A panel [units, mr] ·
// B panel [units, nr]), where a product of two units is the sum of two products.
#if defined(__GNUC__) && !defined(__clang__)
// Before GCC 13 its AVX-512 intrinsics warn of their own placeholder for a result without a mask.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "cpu/kernels/level.h"

#if defined(__AVX512BF16__)

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

__mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffffu : (1u << count) - 1u); }
__mmask32 first_elements(int64_t count) { return count >= 32 ? 0xffffffffu : (1u << count) - 1u; }

// Of a 16 x 16 matrix of units, by quarters: pairs, then quadruples within the 128-bit lanes, then the lanes.
void transpose(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i even_low = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    const __m512i even_high = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    const __m512i odd_high = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    t[i] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    t[i + 8] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    t[i + 12] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// Up to 16 lanes of a panel whose elements are contiguous along the depth: 16 units of each lane at a time, transposed.
void pack_along_depth(float* packed, int64_t panel, const uint16_t* source, int64_t lane_stride, int64_t lanes,
                      int64_t stored, int64_t depth) {
  for (int64_t p = 0; p < depth; p += 32, packed += 16 * panel) {
    const __mmask32 elements = first_elements(depth - p);
    __m512i r[16];
#pragma GCC unroll 16
    for (int64_t i = 0; i < 16; ++i)
      r[i] = i < lanes ? _mm512_maskz_loadu_epi16(elements, source + i * lane_stride + p) : _mm512_setzero_si512();
    transpose(r);
    const int64_t units = (depth - p + 1) / 2;
#pragma GCC unroll 16
    for (int64_t u = 0; u < 16; ++u)
      if (u < units) _mm512_mask_storeu_epi32(packed + u * panel, first_lanes(stored), r[u]);
  }
}

// Up to 16 lanes of a panel whose lanes are contiguous: two steps of the depth, interleaved.
void pack_across_lanes(float* packed, int64_t panel, const uint16_t* source, int64_t depth_stride, int64_t lanes,
                       int64_t stored, int64_t depth) {
  const auto step = [&](int64_t p) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(p < depth ? lanes : 0), source + p * depth_stride));
  };
  for (int64_t p = 0; p < depth; p += 2, packed += panel)
    _mm512_mask_storeu_epi32(packed, first_lanes(stored), _mm512_or_si512(step(p), _mm512_slli_epi32(step(p + 1), 16)));
}

void pack_scattered(float* packed, int64_t panel, const uint16_t* source, int64_t lane_stride, int64_t depth_stride,
                    int64_t lanes, int64_t stored, int64_t depth) {
  for (int64_t p = 0; p < depth; p += 2, packed += panel) {
    for (int64_t i = 0; i < stored; ++i) {
      const uint16_t* first = source + i * lane_stride + p * depth_stride;
      const uint16_t pair[2] = {i < lanes ? first[0] : uint16_t{0},
                                i < lanes && p + 1 < depth ? first[depth_stride] : uint16_t{0}};
      memcpy(packed + i, pair, 4);
    }
  }
}

}  // namespace

void pack_pairs(float* packed, int64_t panel, const void* data, int64_t lane_stride, int64_t depth_stride, int64_t lanes,
                int64_t depth) {
  const auto* source = static_cast<const uint16_t*>(data);
  const int64_t units = (depth + 1) / 2;
  for (int64_t l0 = 0; l0 < lanes; l0 += panel, packed += panel * units) {
    for (int64_t l = 0; l < panel; l += 16) {
      const int64_t left = lanes - l0 - l, count = left < 0 ? 0 : left;
      const int64_t stored = panel - l < 16 ? panel - l : 16, used = count < stored ? count : stored;
      const uint16_t* from = used > 0 ? source + (l0 + l) * lane_stride : source;
      if (depth_stride == 1) {
        pack_along_depth(packed + l, panel, from, lane_stride, used, stored, depth);
      } else if (lane_stride == 1) {
        pack_across_lanes(packed + l, panel, from, depth_stride, used, stored, depth);
      } else {
        pack_scattered(packed + l, panel, from, lane_stride, depth_stride, used, stored, depth);
      }
    }
  }
}

// VDPBF16PS takes denormal inputs as zero and flushes denormal results, always rounds to nearest even and raises no
// exceptions, whatever MXCSR says. alpha is applied to the float32 sums: scaled bfloat16 inputs would be rounded again.
void micro_pairs(int64_t units, const float* a, const float* b, float* c, int64_t c_stride, int64_t rows, int64_t columns,
                 float alpha, bool accumulate) {
  __m512 sums[mr][2] = {};
  for (int64_t p = 0; p < units; ++p) {
    const __m512bh b0 = (__m512bh)_mm512_loadu_ps(b), b1 = (__m512bh)_mm512_loadu_ps(b + width);
#pragma GCC unroll 16
    for (int64_t i = 0; i < mr; ++i) {
      const __m512bh ai = (__m512bh)_mm512_set1_ps(a[i]);
      sums[i][0] = _mm512_dpbf16_ps(sums[i][0], ai, b0);
      sums[i][1] = _mm512_dpbf16_ps(sums[i][1], ai, b1);
    }
    a += mr;
    b += nr;
  }
  const __mmask16 left = first_lanes(columns), right = first_lanes(columns > width ? columns - width : 0);
  const __m512 factor = _mm512_set1_ps(alpha);
#pragma GCC unroll 16
  for (int64_t i = 0; i < mr; ++i) {
    if (i >= rows) break;
    float* row = c + i * c_stride;
    __m512 old0 = _mm512_setzero_ps(), old1 = old0;
    if (accumulate) {
      old0 = _mm512_maskz_loadu_ps(left, row);
      old1 = _mm512_maskz_loadu_ps(right, row + width);
    }
    _mm512_mask_storeu_ps(row, left, _mm512_fmadd_ps(factor, sums[i][0], old0));
    _mm512_mask_storeu_ps(row + width, right, _mm512_fmadd_ps(factor, sums[i][1], old1));
  }
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA

#endif
