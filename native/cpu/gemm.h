// C (+)= alpha * A · B on the CPU. With OpenBLAS for float32 operands where the build has it, else (and for bfloat16 and
// float16 operands) with packed panels and the register tile of the selected instruction-set level, as in BLIS. Where the
// level has a dot product of bfloat16 pairs, two bfloat16 operands are multiplied as they are, else as float32.
// The result does not depend on the number of threads.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "cpu/kernels/kernels.h"

namespace sparsegpt::cpu {

// A matrix operand by its strides, so a transpose costs nothing. Strides count elements.
struct Operand {
  const void* data;
  DType dtype;
  int64_t row_stride;
  int64_t column_stride;

  const void* at(int64_t row, int64_t column) const {
    return static_cast<const char*>(data) +
           (row * row_stride + column * column_stride) * static_cast<int64_t>(dtype_size(dtype));
  }
  Operand transposed() const { return {data, dtype, column_stride, row_stride}; }
};

inline Operand operand(const Tensor& t) { return {t.bytes(), t.dtype, t.stride, 1}; }
inline Operand operand(const float* data, int64_t stride) { return {data, DType::f32, stride, 1}; }

enum class Triangle { full, upper };

struct Gemm {
  int64_t m, n, k;
  Operand a;  // [m, k]
  Operand b;  // [k, n]
  float* c;   // [m, n], rows c_stride apart
  int64_t c_stride;
  float alpha = 1;
  bool accumulate = false;              // C += instead of C =
  Triangle triangle = Triangle::full;   // upper: only the entries j >= i are written
};

void gemm(ThreadPool& pool, const Kernels& kernels, const Gemm& g);
// The portable path alone; gemm() takes it where OpenBLAS does not serve.
void gemm_packed(ThreadPool& pool, const Kernels& kernels, const Gemm& g);

// C (+)= tile [rows, columns], on and right of the diagonal, which starts `below` columns right of the tile's first entry.
void store_upper(float* c, int64_t c_stride, const float* tile, int64_t tile_stride, int64_t rows, int64_t columns,
                 int64_t below, bool accumulate);

// The name of the linear-algebra library behind float32 products.
const char* blas_description();

}  // namespace sparsegpt::cpu
