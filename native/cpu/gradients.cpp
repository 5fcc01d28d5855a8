// Gradients by rows and by elements, and the optimizer. Sums over tokens are made in an order that does not depend on the number
// of threads.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/cpu_backend.h"
#include "cpu/gemm.h"
#include "cpu/optimizer.h"
#include "cpu/rows.h"
#include "cpu/scratch_model.h"

namespace sparsegpt::cpu {

SPARSEGPT_KERNEL(activate_gradient, void, float* dy, const float* x, int64_t count, Activation kind);
SPARSEGPT_KERNEL(gate_gradient, void, float* dy, float* dup, const float* x, const float* up, int64_t count,
                 Activation kind);
SPARSEGPT_KERNEL(row_dot, float, const float* x, const float* y, int64_t count);
// Adds to dweight and, if it is not null, dbias, whose norm is that of LayerNorm.
SPARSEGPT_KERNEL(norm_gradient, void, float* dx, float* dweight, float* dbias, const float* x, const float* dy,
                 const float* weight, int64_t count, float epsilon);
// Returns the error; dx may be null.
SPARSEGPT_KERNEL(relative_error, float, float* dx, const float* x, const float* target, int64_t count, float scale,
                 float typical_norm);

namespace {

// Without the operands' addresses, which have no place in a plan.
Gemm product_of(const Multiply& o) {
  Gemm product{o.x.rows, o.out.columns, o.x.columns, layout(o.x), layout(o.weight), nullptr, o.out.stride};
  product.dtype = o.out.dtype;
  product.sparse_b = true;
  return product;
}

// Rows whose sums are made one after the other; the sums of such strips are then added in order.
constexpr int64_t strip_rows = 64;

struct NormSizes {
  NormSizes(const NormGradient& o, int threads)
      : strips(divide_up(o.x.rows, strip_rows)),
        sums(2 * strips * o.x.columns),
        rows((o.x.dtype == DType::f32 ? 0 : threads * o.x.columns) +
             (o.dy.dtype == DType::f32 ? 0 : threads * o.x.columns)) {}
  int64_t strips;
  int64_t sums, rows;  // floats
};

// body(row, elements of x, elements of y) for every row.
template <typename Body>
void for_row_pairs(ThreadPool& pool, Level level, const Tensor& x, const Tensor& y, const Body& body) {
  for_rows(pool, x.rows, x.columns, [&](int64_t i, std::vector<float>& buffer) {
    buffer.resize(static_cast<size_t>(2 * x.columns));
    body(i, as_floats(level, x, i, 0, x.columns, buffer.data()),
         as_floats(level, y, i, 0, x.columns, buffer.data() + x.columns));
  });
}

}  // namespace

void CpuBackend::compute(const Multiply& o) {
  Gemm product = product_of(o);
  product.a.data = o.x.bytes();
  product.b.data = o.weight.bytes();
  product.c = o.out.bytes();
  gemm(pool_, level_, product);
}

size_t CpuScratch::bytes(const Multiply& o) const { return gemm_scratch(level_, threads_, product_of(o)); }

void CpuBackend::compute(const AccumulateRows& o) {
  constexpr int64_t part = 256;
  pool_.parallel_for(divide_up(o.x.columns, part), [&](int64_t task, int) {
    const int64_t j = task * part, count = std::min(part, o.x.columns - j);
    float buffer[part];
    for (int64_t t = 0; t < o.x.rows; ++t)
      add[level_](o.sums.data<float>() + j, as_floats(level_, o.x, t, j, count, buffer), count);
  });
}

void CpuBackend::compute(const NormGradient& o) {
  const int64_t columns = o.x.columns;
  const NormSizes sizes(o, pool_.threads());
  const auto sums = pool_.scratch<float>(sizes.sums);
  const auto rows = pool_.scratch<float>(sizes.rows);
  pool_.parallel_for(sizes.strips, [&](int64_t strip, int thread) {
    float *dweight = sums.data() + 2 * strip * columns, *dbias = dweight + columns;
    std::fill(dweight, dweight + 2 * columns, 0.0f);
    float* own = rows.data() + thread * (sizes.rows / pool_.threads());
    float* own_dy = own + (o.x.dtype == DType::f32 ? 0 : columns);
    for (int64_t i = strip * strip_rows; i < std::min(o.x.rows, (strip + 1) * strip_rows); ++i) {
      const float* x = as_floats(level_, o.x, i, 0, columns, own);
      const float* dy = as_floats(level_, o.dy, i, 0, columns, own_dy);
      // The elements of dy are read before those of dx are written in their place.
      float* dx = o.dx.dtype == DType::f32 ? reinterpret_cast<float*>(row_of(o.dx, i)) : own;
      norm_gradient[level_](dx, dweight, o.dbias ? dbias : nullptr, x, dy, o.weight.data<float>(), columns, o.epsilon);
      if (o.dx.dtype != DType::f32) from_float[level_](row_of(o.dx, i), o.dx.dtype, dx, columns);
    }
  });
  constexpr int64_t part = 256;
  pool_.parallel_for(divide_up(columns, part), [&](int64_t task, int) {
    const int64_t j = task * part, count = std::min(part, columns - j);
    for (int64_t strip = 0; strip < sizes.strips; ++strip) {
      const float* dweight = sums.data() + 2 * strip * columns + j;
      add[level_](o.dweight.data<float>() + j, dweight, count);
      if (o.dbias) add[level_](o.dbias.data<float>() + j, dweight + columns, count);
    }
  });
}

size_t CpuScratch::bytes(const NormGradient& o) const {
  const NormSizes sizes(o, threads_);
  return Scratch<float>::bytes(sizes.sums) + Scratch<float>::bytes(sizes.rows);
}

void CpuBackend::compute(const ActivateGradient& o) {
  for_row_pairs(pool_, level_, o.dy, o.x, [&](int64_t i, float* dy, const float* x) {
    activate_gradient[level_](dy, x, o.x.columns, o.kind);
    if (o.dy.dtype != DType::f32) from_float[level_](row_of(o.dy, i), o.dy.dtype, dy, o.x.columns);
  });
}

void CpuBackend::compute(const GateGradient& o) {
  constexpr int64_t span = 256;
  for_rows(pool_, o.x.rows, o.x.columns, [&](int64_t i, std::vector<float>&) {
    float buffers[4][span];
    for (int64_t j = 0; j < o.x.columns; j += span) {
      const int64_t count = std::min(span, o.x.columns - j);
      float* dy = as_floats(level_, o.dy, i, j, count, buffers[0]);
      const float* x = as_floats(level_, o.x, i, j, count, buffers[1]);
      const float* up = as_floats(level_, o.up, i, j, count, buffers[2]);
      float* dup = o.dup.dtype == DType::f32 ? reinterpret_cast<float*>(element(o.dup, i, j)) : buffers[3];
      gate_gradient[level_](dy, dup, x, up, count, o.kind);
      if (o.dy.dtype != DType::f32) from_float[level_](element(o.dy, i, j), o.dy.dtype, dy, count);
      if (o.dup.dtype != DType::f32) from_float[level_](element(o.dup, i, j), o.dup.dtype, dup, count);
    }
  });
}

void CpuBackend::compute(const PutColumns& o) {
  const auto bytes = static_cast<size_t>(o.count) * dtype_size(o.x.dtype);
  for_rows(pool_, o.x.rows, o.x.columns, [&](int64_t t, std::vector<float>&) {
    for (int64_t g = 0; g < o.x.columns / o.count; ++g)
      std::memcpy(element(o.out, t, g * o.stride + o.first), element(o.x, t, g * o.count), bytes);
  });
}

void CpuBackend::compute(const RowDots& o) {
  for_row_pairs(pool_, level_, o.x, o.y, [&](int64_t i, const float* x, const float* y) {
    o.dots.data<float>()[i] = row_dot[level_](x, y, o.x.columns);
  });
}

void CpuBackend::compute(const RelativeErrors& o) {
  for_row_pairs(pool_, level_, o.x, o.target, [&](int64_t i, float* x, const float* target) {
    const bool floats = o.dx && o.dx.dtype == DType::f32;
    // A converted x may be overwritten.
    std::vector<float> buffer(o.dx && !floats && o.x.dtype == DType::f32 ? static_cast<size_t>(o.x.columns) : 0);
    float* dx = !o.dx ? nullptr : floats ? reinterpret_cast<float*>(row_of(o.dx, i)) : buffer.empty() ? x : buffer.data();
    o.errors.data<float>()[i] = relative_error[level_](dx, x, target, o.x.columns, o.scale, o.typical_norm);
    if (o.dx && !floats) from_float[level_](row_of(o.dx, i), o.dx.dtype, dx, o.x.columns);
  });
}

void CpuBackend::compute(const Adam& o) {
  const auto power = static_cast<double>(o.step);
  AdamRates rates{o.rate, o.beta1, o.beta2, o.epsilon, o.decay, 1, 1, o.keep_zeros};
  rates.first_scale = static_cast<float>(1 / (1 - std::pow(static_cast<double>(o.beta1), power)));
  rates.second_scale = static_cast<float>(1 / (1 - std::pow(static_cast<double>(o.beta2), power)));
  constexpr int64_t part = 16384;
  pool_.parallel_for(divide_up(o.weight.size(), part), [&](int64_t task, int) {
    const int64_t i = task * part;
    adam[level_](o.weight.data<float>() + i, o.first.data<float>() + i, o.second.data<float>() + i,
                 o.gradient.data<float>() + i, std::min(part, o.weight.size() - i), rates);
  });
}

}  // namespace sparsegpt::cpu
