// Packing and the register tile of the portable GEMM, after BLIS: C[mr, nr] += A panel [depth, mr] · B panel [depth, nr].
#include "cpu/kernels/level.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

void pack_a(float* packed, const void* a, DType dtype, int64_t row_stride, int64_t column_stride, int64_t rows,
            int64_t depth, float alpha) {
  const int64_t bytes = static_cast<int64_t>(dtype_size(dtype));
  for (int64_t i0 = 0; i0 < rows; i0 += mr, packed += mr * depth) {
    const int64_t count = rows - i0 < mr ? rows - i0 : mr;
    const char* source = static_cast<const char*>(a) + i0 * row_stride * bytes;
    if (column_stride == 1) {
      // Rows are contiguous: convert a stretch of each row, then interleave.
      constexpr int64_t stretch = 64;
      float row[stretch];
      for (int64_t p0 = 0; p0 < depth; p0 += stretch) {
        const int64_t steps = depth - p0 < stretch ? depth - p0 : stretch;
        for (int64_t i = 0; i < mr; ++i) {
          float* out = packed + p0 * mr + i;
          if (i >= count) {
            for (int64_t p = 0; p < steps; ++p) out[p * mr] = 0;
            continue;
          }
          span_to_float(row, source + (i * row_stride + p0) * bytes, dtype, steps);
          for (int64_t p = 0; p < steps; ++p) out[p * mr] = alpha * row[p];
        }
      }
    } else {
      for (int64_t p = 0; p < depth; ++p) {
        float* out = packed + p * mr;
        if (row_stride == 1) {
          span_to_float(out, source + p * column_stride * bytes, dtype, count);
          for (int64_t i = 0; i < count; ++i) out[i] *= alpha;
        } else {
          for (int64_t i = 0; i < count; ++i)
            out[i] = alpha * load_scalar(source, i * row_stride + p * column_stride, dtype);
        }
        for (int64_t i = count; i < mr; ++i) out[i] = 0;
      }
    }
  }
}

void pack_b(float* packed, const void* b, DType dtype, int64_t row_stride, int64_t column_stride, int64_t depth,
            int64_t columns) {
  const int64_t bytes = static_cast<int64_t>(dtype_size(dtype));
  for (int64_t j0 = 0; j0 < columns; j0 += nr, packed += nr * depth) {
    const int64_t count = columns - j0 < nr ? columns - j0 : nr;
    const char* source = static_cast<const char*>(b) + j0 * column_stride * bytes;
    if (column_stride == 1) {
      for (int64_t p = 0; p < depth; ++p) {
        float* out = packed + p * nr;
        span_to_float(out, source + p * row_stride * bytes, dtype, count);
        for (int64_t j = count; j < nr; ++j) out[j] = 0;
      }
    } else {
      constexpr int64_t stretch = 64;
      float column[stretch];
      for (int64_t p0 = 0; p0 < depth; p0 += stretch) {
        const int64_t steps = depth - p0 < stretch ? depth - p0 : stretch;
        for (int64_t j = 0; j < nr; ++j) {
          float* out = packed + p0 * nr + j;
          if (j >= count) {
            for (int64_t p = 0; p < steps; ++p) out[p * nr] = 0;
          } else if (row_stride == 1) {
            span_to_float(column, source + (j * column_stride + p0) * bytes, dtype, steps);
            for (int64_t p = 0; p < steps; ++p) out[p * nr] = column[p];
          } else {
            for (int64_t p = 0; p < steps; ++p)
              out[p * nr] = load_scalar(source, (p0 + p) * row_stride + j * column_stride, dtype);
          }
        }
      }
    }
  }
}

void micro(int64_t depth, const float* a, const float* b, float* c, int64_t c_stride, int64_t rows, int64_t columns,
           bool accumulate) {
  vf sums[mr][2] = {};
  for (int64_t p = 0; p < depth; ++p) {
    const vf b0 = load(b), b1 = load(b + width);
#pragma GCC unroll 16
    for (int64_t i = 0; i < mr; ++i) {
      sums[i][0] += b0 * a[i];
      sums[i][1] += b1 * a[i];
    }
    a += mr;
    b += nr;
  }
  if (rows == mr && columns == nr) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < mr; ++i) {
      float* row = c + i * c_stride;
      store(row, accumulate ? load(row) + sums[i][0] : sums[i][0]);
      store(row + width, accumulate ? load(row + width) + sums[i][1] : sums[i][1]);
    }
    return;
  }
  float tile[mr * nr];
#pragma GCC unroll 16
  for (int64_t i = 0; i < mr; ++i) {
    store(tile + i * nr, sums[i][0]);
    store(tile + i * nr + width, sums[i][1]);
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      c[i * c_stride + j] = accumulate ? c[i * c_stride + j] + tile[i * nr + j] : tile[i * nr + j];
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
