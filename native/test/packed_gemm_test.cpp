// The portable product (packing, register tile, macro-kernel) of every level against sums in double.
#include "test/matrix.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

using Layout = Matrix::Layout;

constexpr DType types[] = {DType::f32, DType::bf16, DType::f16};
constexpr Layout layouts[] = {Layout::rows, Layout::transposed, Layout::scattered};

struct Shape {
  int64_t m, n, k;
};

void check_product(ThreadPool& pool, const cpu::Kernels& level, Random& random, const Shape& shape) {
  const auto [m, n, k] = shape;
  const auto pick = [&](const auto& choices) { return choices[random.integer(0, 2)]; };
  const DType a_type = pick(types), b_type = pick(types);
  const Matrix a(random, a_type, m, k, pick(layouts), random.integer(0, 5));
  const Matrix b(random, b_type, k, n, pick(layouts), random.integer(0, 5));
  const bool accumulate = random.flip(), upper = random.flip();
  const float alpha = random.flip() ? 1.0f : -1.0f;
  const int64_t stride = n + random.integer(0, 5);
  // C starts as NaN where it must be overwritten, and as a known value where it must be kept or added to.
  constexpr float old = 0.75f;
  std::vector<float> c(static_cast<size_t>(m * stride), old);
  if (!accumulate)
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = upper ? i : 0; j < n; ++j) c[static_cast<size_t>(i * stride + j)] = NAN;

  cpu::Gemm g{m, n, k, a.operand(), b.operand(), c.data(), stride};
  g.alpha = alpha;
  g.accumulate = accumulate;
  g.triangle = upper ? cpu::Triangle::upper : cpu::Triangle::full;
  cpu::gemm(pool, level, g);

  const double tolerance = 1e-6 + 2e-7 * static_cast<double>(k);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < stride; ++j) {
      const float actual = c[static_cast<size_t>(i * stride + j)];
      if (j >= n || (upper && j < i)) {
        CHECK_EQUAL(actual, old);
        continue;
      }
      double sum = 0;
      for (int64_t p = 0; p < k; ++p) sum += a(i, p) * b(p, j);
      CHECK_CLOSE(actual, alpha * sum + (accumulate ? old : 0), tolerance);
    }
  }
}

// Bfloat16 operands, which some levels multiply as pairs: an odd depth, both layouts, a factor that is no bfloat16 value.
void check_bf16_product(const cpu::Kernels& level, Random& random, const Shape& shape, Layout a_layout, Layout b_layout,
                        bool upper, bool accumulate) {
  const auto [m, n, k] = shape;
  const Matrix a(random, DType::bf16, m, k, a_layout, 1), b(random, DType::bf16, k, n, b_layout, 3);
  constexpr float alpha = 0.3712345f, old = 0.75f;
  const auto multiply = [&](int threads) {
    ThreadPool pool(threads);
    std::vector<float> c(static_cast<size_t>(m * n), old);
    cpu::Gemm g{m, n, k, a.operand(), b.operand(), c.data(), n};
    g.alpha = alpha;
    g.accumulate = accumulate;
    g.triangle = upper ? cpu::Triangle::upper : cpu::Triangle::full;
    cpu::gemm(pool, level, g);
    return c;
  };
  const std::vector<float> c = multiply(1);
  for (int threads : {2, 3}) CHECK(multiply(threads) == c);
  // Rounding alpha to bfloat16 would be off by 2e-3 of the sum.
  const double tolerance = 1e-6 + 1e-7 * static_cast<double>(k);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const float actual = c[static_cast<size_t>(i * n + j)];
      if (upper && j < i) {
        CHECK_EQUAL(actual, old);
        continue;
      }
      double sum = 0;
      for (int64_t p = 0; p < k; ++p) sum += a(i, p) * b(p, j);
      CHECK_CLOSE(actual, static_cast<double>(alpha) * sum + (accumulate ? old : 0), tolerance);
    }
  }
}

}  // namespace

TEST("packed GEMM: two bfloat16 operands, the same on any number of threads") {
  const Shape shapes[] = {{1, 1, 1}, {13, 33, 3}, {12, 32, 64}, {61, 47, 129}, {253, 70, 515}, {300, 300, 1031}};
  for (const auto* level : cpu::available_kernels()) {
    uint64_t seed = 2000;
    for (const Shape& shape : shapes) {
      for (const Layout a_layout : layouts) {
        for (const Layout b_layout : layouts) {
          Random random(++seed);
          const bool upper = seed % 2 == 0, accumulate = random.flip();
          describe_case(level->name, ", seed ", seed, ", m n k ", shape.m, " ", shape.n, " ", shape.k);
          check_bf16_product(*level, random, shape, a_layout, b_layout, upper, accumulate);
        }
      }
    }
  }
}

TEST("packed GEMM: random shapes, types, layouts, triangles") {
  for (const auto* level : cpu::available_kernels()) {
    ThreadPool pool(2);
    for (uint64_t seed = 1; seed <= 150; ++seed) {
      Random random(seed);
      const Shape shape{random.integer(1, 70), random.integer(1, 70), random.integer(1, 70)};
      describe_case(level->name, ", seed ", seed, ", m n k ", shape.m, " ", shape.n, " ", shape.k);
      check_product(pool, *level, random, shape);
    }
  }
}

TEST("packed GEMM: shapes beyond one cache block in each dimension") {
  const Shape shapes[] = {{250, 40, 600}, {5, 3100, 7}, {500, 501, 20}, {1, 1, 1000}, {33, 65, 0}};
  for (const auto* level : cpu::available_kernels()) {
    ThreadPool pool(2);
    uint64_t seed = 1000;
    for (const Shape& shape : shapes) {
      Random random(++seed);
      describe_case(level->name, ", seed ", seed, ", m n k ", shape.m, " ", shape.n, " ", shape.k);
      check_product(pool, *level, random, shape);
    }
  }
}
