// Products with an upper triangular matrix and its inverse.
#pragma once

#include "core/thread_pool.h"
#include "cpu/kernel.h"
#include "cpu/lanes.h"

namespace sparsegpt::cpu {

constexpr int64_t factor_columns = 128;  // of a block on the diagonal
constexpr int64_t factor_scratch = factor_columns * factor_columns;

// Factors a block H = R Rᵀ on the diagonal, [size, size] with size <= factor_columns, in place; false when a pivot is not positive.
// Reads and writes the upper triangle. Scratch of factor_scratch floats.
SPARSEGPT_KERNEL(factor_block, bool, float* a, int64_t stride, int64_t size, float* scratch);
// a = a R⁻¹, or a R⁻ᵀ (transposed), for [rows, size] with rows <= lanes, size <= factor_columns; scratch as above.
SPARSEGPT_KERNEL(solve_panel, void, float* a, int64_t a_stride, const float* r, int64_t r_stride, bool transposed,
                 int64_t rows, int64_t size, float* scratch);
// out[j][i] = in[i][j] for i < lanes and j < columns
SPARSEGPT_KERNEL(transpose, void, float* out, int64_t out_stride, const float* in, int64_t in_stride, int64_t columns);

// A part of a matrix, by rows.
template <typename Float>
struct Part {
  Float* data;
  int64_t stride;
  Float* at(int64_t row, int64_t column) const { return data + row * stride + column; }
};

// a = a R⁻¹ or a R⁻ᵀ for [rows, columns], in place, by recursive halves, so that nearly all work is in large products. Only the
// upper triangle of R is read. scratch: factor_scratch floats for each thread.
void solve_triangle(ThreadPool& pool, Level level, Part<float> a, int64_t rows, int64_t columns, Part<const float> r,
                    bool transposed, float* scratch);

// The scratch memory of its products at most, in bytes.
size_t solve_scratch(Level level, int threads, int64_t rows, int64_t columns);

// out = x R or x Rᵀ for [rows, columns]; out is not x. Only the upper triangle of R is read. block: triangle_block(columns) floats.
void multiply_triangle(ThreadPool& pool, Level level, Part<float> out, Part<const float> x, int64_t rows, int64_t columns,
                       Part<const float> r, bool transposed, float* block);
int64_t triangle_block(int64_t columns);

// The scratch memory of its products at most, in bytes.
size_t multiply_scratch(Level level, int threads, int64_t rows, int64_t columns);

// Where columns are cut in two: blocks of factor_columns are whole but for the first.
int64_t split_columns(int64_t columns);

}  // namespace sparsegpt::cpu
