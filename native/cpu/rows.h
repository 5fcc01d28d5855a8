// What operations that work row by row share. They compute in float32, whatever the element types.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "cpu/spans.h"

namespace sparsegpt::cpu {

inline std::byte* element(const Tensor& tensor, int64_t row, int64_t column) {
  return tensor.bytes() + (row * tensor.stride + column) * static_cast<int64_t>(dtype_size(tensor.dtype));
}
inline std::byte* row_of(const Tensor& tensor, int64_t row) { return element(tensor, row, 0); }

// body(row, buffer) for every row, in parallel; rows of `columns` elements are handed out some at a time.
template <typename Body>
void for_rows(ThreadPool& pool, int64_t rows, int64_t columns, const Body& body) {
  const int64_t per_task = std::max<int64_t>(1, 16384 / std::max<int64_t>(columns, 1));
  pool.parallel_for((rows + per_task - 1) / per_task, [&](int64_t task, int) {
    std::vector<float> buffer;
    for (int64_t i = task * per_task; i < std::min(rows, (task + 1) * per_task); ++i) body(i, buffer);
  });
}

// Elements of a row in float32: themselves, or converted into the buffer.
inline float* as_floats(Level level, const Tensor& tensor, int64_t row, int64_t column, int64_t count, float* buffer) {
  if (tensor.dtype == DType::f32) return reinterpret_cast<float*>(element(tensor, row, column));
  to_float[level](buffer, element(tensor, row, column), tensor.dtype, count);
  return buffer;
}

// out = f(in) by rows; out may be in. f(out row, in row [, index]).
template <typename Function>
void map_rows(ThreadPool& pool, Level level, const Tensor& out, const Tensor& in, const Function& f) {
  const auto call = [&](float* y, const float* x, int64_t i) {
    if constexpr (std::is_invocable_v<Function, float*, const float*, int64_t>) {
      f(y, x, i);
    } else {
      f(y, x);
    }
  };
  for_rows(pool, in.rows, in.columns, [&](int64_t i, std::vector<float>& buffer) {
    float* y = reinterpret_cast<float*>(row_of(out, i));
    if (out.dtype != DType::f32) {
      buffer.resize(static_cast<size_t>(in.columns));
      y = buffer.data();
    }
    call(y, as_floats(level, in, i, 0, in.columns, y), i);
    if (out.dtype != DType::f32) from_float[level](row_of(out, i), out.dtype, y, in.columns);
  });
}

}  // namespace sparsegpt::cpu
