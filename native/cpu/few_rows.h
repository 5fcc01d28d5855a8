// Products of a few rows with a matrix that is stored as [out, in], as those of a token with weights: bound by reading the matrix, so
// nothing of it is packed; every column's sum is a dot product along the row in which it is stored.
#pragma once

#include "cpu/gemm.h"

namespace sparsegpt::cpu {

// Above so many rows packing pays.
constexpr int64_t few_rows_most = 8;

// Some columns of C = alpha * A · B + bias.
struct FewRows {
  int64_t rows, columns, depth;
  const void* a;  // [rows, depth]
  DType a_dtype;  // f32; bf16 where B is and the level multiplies pairs
  int64_t a_stride;
  const void* b;  // [columns, depth]
  DType b_dtype;  // f32 or bf16
  int64_t b_stride;
  float alpha;
  const float* bias;  // [columns], or null
  void* c;  // [rows, columns]
  DType c_dtype;
  int64_t c_stride;
};
SPARSEGPT_KERNEL(multiply_few, void, const FewRows& o);

// Whether multiply_few_rows() takes the product.
bool has_few_rows(const Gemm& g);
void multiply_few_rows(ThreadPool& pool, Level level, const Gemm& g);
size_t few_rows_scratch(Level level, const Gemm& g);

}  // namespace sparsegpt::cpu
