// Matrices whose rows lie along the vector lanes, [column][lane]: the transposition to and from them, and sums over finished
// columns. Rows are independent in the column sweep and in a triangular solve, so neither needs a sum across a vector.
#pragma once

#include "cpu/kernels/vec.h"
#include "cpu/lanes.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

// Columns that are finished together, one after the other, after one pass over all columns before them.
constexpr int64_t strip_columns = 4;

#if defined(__clang__)
#if defined(__AVX512F__)
#define SPARSEGPT_ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define SPARSEGPT_ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX2__)
#define SPARSEGPT_ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define SPARSEGPT_ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define SPARSEGPT_ZIP_LOW 0, 4, 1, 5
#define SPARSEGPT_ZIP_HIGH 2, 6, 3, 7
#endif
static inline vf zip_low(vf a, vf b) { return __builtin_shufflevector(a, b, SPARSEGPT_ZIP_LOW); }
static inline vf zip_high(vf a, vf b) { return __builtin_shufflevector(a, b, SPARSEGPT_ZIP_HIGH); }
#undef SPARSEGPT_ZIP_LOW
#undef SPARSEGPT_ZIP_HIGH
#else
static inline vf zip(vf a, vf b, int first) {
  vi index = {};
  for (int i = 0; i < width; ++i) index[i] = first + i / 2 + i % 2 * static_cast<int>(width);
  return __builtin_shuffle(a, b, index);
}
static inline vf zip_low(vf a, vf b) { return zip(a, b, 0); }
static inline vf zip_high(vf a, vf b) { return zip(a, b, width / 2); }
#endif

// Transposes the square in place. Zipping vector i with vector i + width / 2 rotates the bits of (vector, lane) by one, so
// log2(width) rounds swap the two.
static inline void transpose_square(vf* square) {
#pragma GCC unroll 4
  for (int64_t step = 1; step < width; step *= 2) {
    vf zipped[width];
#pragma GCC unroll 8
    for (int64_t i = 0; i < width / 2; ++i) {
      zipped[2 * i] = zip_low(square[i], square[i + width / 2]);
      zipped[2 * i + 1] = zip_high(square[i], square[i + width / 2]);
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < width; ++i) square[i] = zipped[i];
  }
}

static inline vf load_first(const float* p, int64_t count) { return count == width ? load(p) : load_part(p, count); }
static inline void store_first(float* p, vf v, int64_t count) {
  if (count == width) {
    store(p, v);
  } else {
    store_part(p, v, count);
  }
}

// Bit i is set where lane i of a comparison holds.
static inline uint32_t lane_bits(vi holds) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)holds);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)holds));
#else
  uint32_t bits = 0;
  for (int i = 0; i < width; ++i) bits |= static_cast<uint32_t>(holds[i] & 1) << i;
  return bits;
#endif
}

// out[column][lane] = in[lane][column] for lane < rows, and zero in the lanes behind. load_row(row, column, count) gives
// `count` <= width elements of a row of `in`.
template <typename LoadRow>
static inline void gather_lanes(float* out, int64_t out_stride, int64_t rows, int64_t columns, const LoadRow& load_row) {
  for (int64_t j = 0; j < columns; j += width) {
    const int64_t count = columns - j < width ? columns - j : width;
    for (int64_t r = 0; r < lanes; r += width) {
      vf square[width];
      if (r + width <= rows && count == width) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < width; ++i) square[i] = load_row(r + i, j, width);
        transpose_square(square);
#pragma GCC unroll 16
        for (int64_t i = 0; i < width; ++i) store(out + (j + i) * out_stride + r, square[i]);
      } else {
        for (int64_t i = 0; i < width; ++i) square[i] = r + i < rows ? load_row(r + i, j, count) : vf{};
        transpose_square(square);
        for (int64_t i = 0; i < count; ++i) store(out + (j + i) * out_stride + r, square[i]);
      }
    }
  }
}

static inline void load_lanes(float* out, int64_t out_stride, const float* in, int64_t in_stride, int64_t rows,
                              int64_t columns) {
  gather_lanes(out, out_stride, rows, columns,
               [&](int64_t row, int64_t column, int64_t count) { return load_first(in + row * in_stride + column, count); });
}

// The way back: store_row(row, column, vector, count) takes `count` <= width elements of a row.
template <typename StoreRow>
static inline void scatter_lanes(const float* in, int64_t in_stride, int64_t rows, int64_t columns,
                                 const StoreRow& store_row) {
  for (int64_t j = 0; j < columns; j += width) {
    const int64_t count = columns - j < width ? columns - j : width;
    for (int64_t r = 0; r < rows; r += width) {
      const int64_t height = rows - r < width ? rows - r : width;
      vf square[width];
      if (height == width && count == width) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < width; ++i) square[i] = load(in + (j + i) * in_stride + r);
        transpose_square(square);
#pragma GCC unroll 16
        for (int64_t i = 0; i < width; ++i) store_row(r + i, j, square[i], width);
      } else {
        for (int64_t i = 0; i < width; ++i) square[i] = i < count ? load(in + (j + i) * in_stride + r) : vf{};
        transpose_square(square);
        for (int64_t i = 0; i < height; ++i) store_row(r + i, j, square[i], count);
      }
    }
  }
}

// x_j ± = Σ_{k < depth} e_k t(j, k) for the columns j in [0, count), with t(j, k) = t[j * t_column + k * t_depth].
template <bool subtract>
__attribute__((noinline)) static void accumulate(float* x, int64_t x_stride, const float* e, int64_t e_stride,
                                                 const float* t, int64_t t_column, int64_t t_depth, int64_t count,
                                                 int64_t depth) {
  if (depth == 0) return;
  constexpr int64_t group = width == 16 ? 4 : 2;  // columns that share the loads of e
  constexpr int64_t chunk = 4 * width;
  for (int64_t r = 0; r < lanes; r += chunk) {
    int64_t j = 0;
    for (; j + group <= count; j += group) {
      vf sums[group][4] = {};
      const float* from = e + r;
      const float* factors = t + j * t_column;
      for (int64_t k = 0; k < depth; ++k, from += e_stride, factors += t_depth) {
        const vf e0 = load(from), e1 = load(from + width), e2 = load(from + 2 * width), e3 = load(from + 3 * width);
#pragma GCC unroll 4
        for (int64_t g = 0; g < group; ++g) {
          const float factor = factors[g * t_column];
          sums[g][0] += e0 * factor;
          sums[g][1] += e1 * factor;
          sums[g][2] += e2 * factor;
          sums[g][3] += e3 * factor;
        }
      }
#pragma GCC unroll 4
      for (int64_t g = 0; g < group; ++g)
#pragma GCC unroll 4
        for (int64_t v = 0; v < 4; ++v) {
          float* p = x + (j + g) * x_stride + r + v * width;
          store(p, subtract ? load(p) - sums[g][v] : load(p) + sums[g][v]);
        }
    }
    for (; j < count; ++j) {
      vf sums[4] = {};
      for (int64_t k = 0; k < depth; ++k)
#pragma GCC unroll 4
        for (int64_t v = 0; v < 4; ++v) sums[v] += load(e + k * e_stride + r + v * width) * t[j * t_column + k * t_depth];
#pragma GCC unroll 4
      for (int64_t v = 0; v < 4; ++v) {
        float* p = x + j * x_stride + r + v * width;
        store(p, subtract ? load(p) - sums[v] : load(p) + sums[v]);
      }
    }
  }
}

// In place: x_j = (x_j - Σ_{k < j} x_k t(j, k)) / t(j, j).
static inline void solve_lanes(float* x, int64_t x_stride, const float* t, int64_t t_column, int64_t t_depth,
                               int64_t columns) {
  for (int64_t begin = 0; begin < columns; begin += strip_columns) {
    const int64_t end = begin + strip_columns < columns ? begin + strip_columns : columns;
    accumulate<true>(x + begin * x_stride, x_stride, x, x_stride, t + begin * t_column, t_column, t_depth, end - begin,
                     begin);
    for (int64_t j = begin; j < end; ++j) {
      const float* row = t + j * t_column;
      const float inverse = 1.0f / row[j * t_depth];
      for (int64_t r = 0; r < lanes; r += width) {
        vf value = load(x + j * x_stride + r);
        for (int64_t k = begin; k < j; ++k) value -= load(x + k * x_stride + r) * row[k * t_depth];
        store(x + j * x_stride + r, value * inverse);
      }
    }
  }
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
