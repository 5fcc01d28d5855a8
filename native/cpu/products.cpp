// Linear layers, and sums of products over tokens.
#include <algorithm>

#include "cpu/cpu_backend.h"
#include "cpu/gemm.h"
#include "cpu/rows.h"
#include "cpu/scratch_model.h"

namespace sparsegpt::cpu {

SPARSEGPT_KERNEL(add_squares, void, float* sums, const float* x, float factor, int64_t count);

namespace {

// Without the operands' addresses, which have no place in a plan.
Gemm product_of(const Linear& o) {
  Gemm product{o.x.rows, o.out.columns, o.x.columns, layout(o.x), layout(o.weight).transposed(), nullptr, o.out.stride};
  product.dtype = o.out.dtype;
  product.sparse_b = true;
  return product;
}

Gemm product_of(const AccumulateGram& o) {
  Gemm product{o.x.columns, o.x.columns, o.x.rows, layout(o.x).transposed(), layout(o.x), nullptr, o.gram.stride};
  product.alpha = o.scale;
  product.accumulate = true;
  product.triangle = Triangle::upper;
  return product;
}

Gemm product_of(const AccumulateProduct& o) {
  Gemm product{o.x.columns, o.y.columns, o.x.rows, layout(o.x).transposed(), layout(o.y), nullptr, o.sums.stride};
  product.alpha = o.scale;
  product.accumulate = true;
  return product;
}

int64_t bias_floats(const Linear& o) { return o.bias ? o.bias.columns : 0; }

}  // namespace

void CpuBackend::compute(const Linear& o) {
  const auto bias = pool_.scratch<float>(bias_floats(o));
  if (o.bias) to_float[level_](bias.data(), o.bias.bytes(), o.bias.dtype, o.bias.columns);
  Gemm product = product_of(o);
  product.a.data = o.x.bytes();
  product.b.data = o.weight.bytes();
  product.c = o.out.bytes();
  product.bias = o.bias ? bias.data() : nullptr;
  gemm(pool_, level_, product);
}

size_t CpuScratch::bytes(const Linear& o) const {
  return Scratch<float>::bytes(bias_floats(o)) + gemm_scratch(level_, threads_, product_of(o));
}

void CpuBackend::compute(const AccumulateGram& o) {
  Gemm product = product_of(o);
  product.a.data = product.b.data = o.x.bytes();
  product.c = o.gram.bytes();
  gemm(pool_, level_, product);
}

size_t CpuScratch::bytes(const AccumulateGram& o) const { return gemm_scratch(level_, threads_, product_of(o)); }

void CpuBackend::compute(const AccumulateProduct& o) {
  Gemm product = product_of(o);
  product.a.data = o.x.bytes();
  product.b.data = o.y.bytes();
  product.c = o.sums.bytes();
  gemm(pool_, level_, product);
}

size_t CpuScratch::bytes(const AccumulateProduct& o) const { return gemm_scratch(level_, threads_, product_of(o)); }

void CpuBackend::compute(const AccumulateSquares& o) {
  // By columns, so that the order of summation does not depend on the number of threads.
  constexpr int64_t strip = 256;
  pool_.parallel_for((o.x.columns + strip - 1) / strip, [&](int64_t task, int) {
    const int64_t j = task * strip, count = std::min(strip, o.x.columns - j);
    float row[strip];
    for (int64_t t = 0; t < o.x.rows; ++t) {
      to_float[level_](row, element(o.x, t, j), o.x.dtype, count);
      add_squares[level_](o.sums.data<float>() + j, row, o.scale, count);
    }
  });
}

}  // namespace sparsegpt::cpu
