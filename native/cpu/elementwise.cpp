// Operations element by element.
#include <algorithm>

#include "cpu/cpu_backend.h"
#include "cpu/rows.h"

namespace sparsegpt::cpu {

SPARSEGPT_KERNEL(activate, void, float* x, int64_t count, Activation kind);
SPARSEGPT_KERNEL(gate, void, float* x, const float* up, int64_t count, Activation kind);

namespace {

// Elements of other types that are converted and worked on together: few, so that meanwhile the next ones are read.
constexpr int64_t span = 256;

// Changes the elements of x in float32: body(row, column, elements, count), by whole rows where nothing is converted.
template <typename Body>
void for_spans(ThreadPool& pool, Level level, const Tensor& x, bool floats, const Body& body) {
  const int64_t step = floats ? x.columns : span;
  for_rows(pool, x.rows, x.columns, [&](int64_t i, std::vector<float>&) {
    float buffer[span];
    for (int64_t j = 0; j < x.columns; j += step) {
      const int64_t count = std::min(step, x.columns - j);
      float* values = as_floats(level, x, i, j, count, buffer);
      body(i, j, values, count);
      if (x.dtype != DType::f32) from_float[level](element(x, i, j), x.dtype, values, count);
    }
  });
}

// x = f(x): f(x, count).
template <typename Function>
void map_elements(ThreadPool& pool, Level level, const Tensor& x, const Function& f) {
  for_spans(pool, level, x, x.dtype == DType::f32,
            [&](int64_t, int64_t, float* values, int64_t count) { f(values, count); });
}

// x = f(x, y): f(x, y, count).
template <typename Function>
void combine_elements(ThreadPool& pool, Level level, const Tensor& x, const Tensor& y, const Function& f) {
  const bool floats = x.dtype == DType::f32 && y.dtype == DType::f32;
  for_spans(pool, level, x, floats, [&](int64_t i, int64_t j, float* values, int64_t count) {
    float buffer[span];
    f(values, as_floats(level, y, i, j, count, buffer), count);
  });
}

}  // namespace

void CpuBackend::compute(const Activate& o) {
  map_elements(pool_, level_, o.x, [&](float* x, int64_t count) { activate[level_](x, count, o.kind); });
}

void CpuBackend::compute(const Gate& o) {
  combine_elements(pool_, level_, o.x, o.up,
                   [&](float* x, const float* up, int64_t count) { gate[level_](x, up, count, o.kind); });
}

void CpuBackend::compute(const Add& o) { combine_elements(pool_, level_, o.x, o.y, add[level_]); }

void CpuBackend::compute(const Scale& o) {
  map_elements(pool_, level_, o.x, [&](float* x, int64_t count) { scale[level_](x, o.factor, count); });
}

void CpuBackend::compute(const Softcap& o) {
  map_elements(pool_, level_, o.x, [&](float* x, int64_t count) { softcap[level_](x, o.cap, count); });
}

}  // namespace sparsegpt::cpu
