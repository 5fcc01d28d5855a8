// C = alpha * A · B (+ C or a bias row) on the CPU, as in BLIS: panels packed into the order in which the register tile of the
// selected instruction-set level reads them. Operands of any float type are multiplied as float32; where the level has a dot
// product of bfloat16 pairs, two bfloat16 operands are multiplied as they are. Sums are float32.
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

inline int64_t divide_up(int64_t length, int64_t part) { return (length + part - 1) / part; }

// Where part i of `parts` equal ones begins.
inline int64_t cut(int64_t length, int64_t i, int64_t parts) { return length * i / parts; }

enum class Triangle { full, upper };

struct Gemm {
  int64_t m, n, k;
  Operand a;  // [m, k]
  Operand b;  // [k, n]
  void* c;  // [m, n], rows c_stride apart
  int64_t c_stride;
  float alpha = 1;
  bool accumulate = false;  // C += instead of C =; C is float32
  Triangle triangle = Triangle::full;  // upper: only the entries j >= i are written
  const float* bias = nullptr;  // [n], added to every row; not with accumulate
  DType dtype = DType::f32;  // of C
  bool sparse_b = false;  // B may have many zeros, which are then skipped; see sparse.h
};

// Whether bfloat16 elements are multiplied as they are, in pairs.
inline bool multiplies_pairs(const Kernels& kernels, const Gemm& g) {
  return kernels.micro_pairs != nullptr && g.a.dtype == DType::bf16 && g.b.dtype == DType::bf16;
}

// Packs `lanes` rows of the operand and `depth` steps along its columns, from (row, step) on, as pairs or as float32.
inline void pack_panels(const Kernels& kernels, bool pairs, float* packed, int64_t panel, const Operand& rows, int64_t row,
                        int64_t lanes, int64_t step, int64_t depth) {
  const void* data = rows.at(row, step);
  if (pairs) {
    kernels.pack_pairs(packed, panel, data, rows.row_stride, rows.column_stride, lanes, depth);
  } else {
    kernels.pack(packed, panel, data, rows.dtype, rows.row_stride, rows.column_stride, lanes, depth);
  }
}

void gemm(ThreadPool& pool, const Kernels& kernels, const Gemm& g);

}  // namespace sparsegpt::cpu
