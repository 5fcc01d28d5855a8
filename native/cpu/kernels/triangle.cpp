// What the factorisation H = R Rᵀ and its solutions need beside products: blocks on the diagonal, and the rows beside them.
#include "cpu/triangle.h"

#include "cpu/kernels/lanes.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

void transpose(float* out, int64_t out_stride, const float* in, int64_t in_stride, int64_t columns) {
  load_lanes(out, out_stride, in, in_stride, lanes, columns);
}

// Columns go from the last to the first, as R is upper triangular; hence the negative strides.

bool factor_block(float* a, int64_t stride, int64_t size, float* scratch) {
  constexpr int64_t all_lanes = factor_columns;
  static_assert(all_lanes % lanes == 0);
  float* x = scratch;  // [size][all_lanes]: column j of R, its rows along the lanes; those below the diagonal are arbitrary
  for (int64_t r = 0; r < size; r += lanes)
    load_lanes(x + r, all_lanes, a + r * stride, stride, size - r < lanes ? size - r : lanes, size);

  float* last = x + (size - 1) * all_lanes;
  const float* t = last + size - 1;  // t(j, k) = R[j, k], which is lane j of column k
  for (int64_t begin = 0; begin < size; begin += strip_columns) {
    const int64_t end = begin + strip_columns < size ? begin + strip_columns : size;
    const int64_t used = size - begin;  // rows that these columns have
    for (int64_t r = 0; r < used; r += lanes)
      accumulate<true>(last - begin * all_lanes + r, -all_lanes, last + r, -all_lanes, t - begin, -1, -all_lanes,
                       end - begin, begin);
    for (int64_t j = begin; j < end; ++j) {
      float* column = last - j * all_lanes;
      for (int64_t k = begin; k < j; ++k) {
        const float factor = t[-j - k * all_lanes];
        for (int64_t r = 0; r < used; r += width)
          store(column + r, load(column + r) - load(last - k * all_lanes + r) * factor);
      }
      const float pivot = column[size - 1 - j];
      if (!(pivot > 0 && pivot <= 3.402823466e38f)) return false;
      const float inverse = 1.0f / __builtin_sqrtf(pivot);
      for (int64_t r = 0; r < used; r += width) store(column + r, load(column + r) * inverse);
    }
  }

  for (int64_t r = 0; r < size; r += lanes)
    scatter_lanes(x + r, all_lanes, size - r < lanes ? size - r : lanes, size,
                  [&](int64_t row, int64_t column, vf values, int64_t count) {
                    const int64_t below = r + row - column;  // so many of the values lie below the diagonal
                    float* out = a + (r + row) * stride + column;
                    if (below <= 0) {
                      store_first(out, values, count);
                    } else if (below < count) {
                      float kept[width];
                      store(kept, values);
                      for (int64_t i = below; i < count; ++i) out[i] = kept[i];
                    }
                  });
  return true;
}

void solve_panel(float* a, int64_t a_stride, const float* r, int64_t r_stride, bool transposed, int64_t rows, int64_t size,
                 float* scratch) {
  load_lanes(scratch, lanes, a, a_stride, rows, size);
  const int64_t last = size - 1;
  if (transposed) {
    solve_lanes(scratch + last * lanes, -lanes, r + last * r_stride + last, -r_stride, -1, size);
  } else {
    solve_lanes(scratch, lanes, r, 1, r_stride, size);
  }
  scatter_lanes(scratch, lanes, rows, size, [&](int64_t row, int64_t column, vf values, int64_t count) {
    store_first(a + row * a_stride + column, values, count);
  });
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
