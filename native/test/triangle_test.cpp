// Products with the factor and its inverse, against plain loops.
#include <cmath>

#include "cpu/cpu_backend.h"
#include "test/on_device.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

// Upper triangular with a dominant diagonal, and NaN below it.
std::vector<float> random_triangle(Random& random, int64_t n) {
  auto r = random.uniforms(n * n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      float& value = r[static_cast<size_t>(i * n + j)];
      if (j < i) value = NAN;
      if (j == i) value = static_cast<float>(random.uniform(1, 2));
      if (j > i) value *= static_cast<float>(1 / std::sqrt(static_cast<double>(n)));
    }
  return r;
}

}  // namespace

TEST("triangular product: x R, x Rᵀ and both inverses, on every level") {
  for (cpu::Level level : cpu::available_levels()) {
    for (int64_t n : {1, 7, 64, 127, 129, 256, 300, 700}) {
      OnDevice cpu(std::make_shared<cpu::CpuBackend>(2, level));
      Random random(static_cast<uint64_t>(n));
      const int64_t rows = random.integer(1, 150);
      const auto x = random.uniforms(rows * n), r = random_triangle(random, n);
      const Tensor xt = cpu.floats(DType::f32, rows, n, x), factor = cpu.floats(DType::f32, n, n, r);
      const auto at = [&](int64_t i, int64_t j) { return static_cast<double>(r[static_cast<size_t>(i * n + j)]); };
      for (const bool transposed : {false, true}) {
        describe_case(cpu::level_name(level), ", ", rows, " x ", n, transposed ? ", transposed" : "");
        const Tensor product = cpu.floats(DType::f32, rows, n, std::vector<float>(x.size(), NAN));
        const Tensor back = cpu.floats(DType::f32, rows, n, std::vector<float>(x.size(), NAN));
        const Tensor solved = cpu.floats(DType::f32, rows, n, std::vector<float>(x.size(), NAN));
        cpu.run(TriangularProduct{product, xt, factor, false, transposed});
        cpu.run(TriangularProduct{back, product, factor, true, transposed});
        cpu.run(TriangularProduct{solved, xt, factor, true, transposed});
        const auto p = cpu.read(product), b = cpu.read(back), s = cpu.read(solved);
        double worst = 0, apart = 0, unsolved = 0;
        const auto gap = [](double a, double e) { return std::isnan(a) ? INFINITY : std::fabs(a - e); };
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            double sum = 0, residual = 0;
            for (int64_t k = transposed ? j : 0; k < (transposed ? n : j + 1); ++k) {
              const double factor_kj = transposed ? at(j, k) : at(k, j);
              sum += x[static_cast<size_t>(i * n + k)] * factor_kj;
              residual += s[static_cast<size_t>(i * n + k)] * factor_kj;
            }
            const auto here = static_cast<size_t>(i * n + j);
            worst = std::max(worst, gap(p[here], sum));
            apart = std::max(apart, gap(b[here], x[here]));
            unsolved = std::max(unsolved, gap(residual, x[here]));
          }
        }
        CHECK_CLOSE(worst, 0, 5e-6);
        CHECK_CLOSE(apart, 0, 2e-5);
        CHECK_CLOSE(unsolved, 0, 2e-5);
      }
    }
  }
  OnDevice cpu(make_cpu_backend(1));
  const Tensor x = cpu.empty(DType::f32, 3, 4), r = cpu.empty(DType::f32, 4, 4);
  CHECK_THROWS_CODE(cpu.run(TriangularProduct{x, x, r, false, false}), "INTERNAL", "not made in place");
}

TEST("triangular product: the same on any number of threads, and of no rows") {
  Random random(3);
  constexpr int64_t rows = 333, n = 600;
  const auto x = random.uniforms(rows * n), r = random_triangle(random, n);
  std::vector<std::vector<float>> first(4);
  for (int threads : {1, 2, 3}) {
    OnDevice cpu(make_cpu_backend(threads));
    const Tensor xt = cpu.floats(DType::f32, rows, n, x), factor = cpu.floats(DType::f32, n, n, r);
    for (size_t kind = 0; kind < 4; ++kind) {
      const Tensor out = cpu.empty(DType::f32, rows, n);
      cpu.run(TriangularProduct{out, xt, factor, kind / 2 == 1, kind % 2 == 1});
      const auto product = cpu.read(out);
      if (first[kind].empty()) first[kind] = product;
      CHECK(product == first[kind]);
      const Tensor none = cpu.empty(DType::f32, 0, n), none_out = cpu.empty(DType::f32, 0, n);
      cpu.run(TriangularProduct{none_out, none, factor, kind / 2 == 1, kind % 2 == 1});
    }
  }
}

TEST("triangular product: half the square of ΔW R is the solver's loss") {
  OnDevice cpu(make_cpu_backend(2));
  Random random(4);
  constexpr int64_t rows = 90, n = 320;
  const auto w = random.normals(rows * n);
  const Tensor x = cpu.floats(DType::f32, 700, n, random.normals(700 * n)), gram = cpu.empty(DType::f32, n, n);
  const Tensor weight = cpu.floats(DType::f32, rows, n, w), mask = cpu.empty(DType::u8, rows, n);
  const Tensor dead = cpu.empty(DType::u8, 1, n), report = cpu.empty(DType::f64, 1, factor_report::count);
  const Tensor loss = cpu.empty(DType::f64, 1, 1), change = cpu.empty(DType::f32, rows, n);
  const Tensor scaled = cpu.empty(DType::f32, rows, n);
  cpu.run(Fill{gram, 0});
  cpu.run(AccumulateGram{gram, x, 2.0f / 700});
  cpu.run(FactorHessian{gram, dead, report, 0.01});
  for (const bool pattern : {false, true}) {
    describe_case(pattern ? "2:4" : "60 %");
    cpu.run([&](Backend& b) { b.upload(weight, w.data()); });
    cpu.run([&](Backend& b) { b.upload(change, w.data()); });
    cpu.run(PruneSparsegpt{weight, mask, loss, gram, dead, {}, 0.6, pattern ? 2 : 0, pattern ? 4 : 0, 100, 0});
    cpu.run(Scale{change, -1});
    cpu.run(Add{change, weight});
    cpu.run(TriangularProduct{scaled, change, gram, false, false});
    double sum = 0;
    for (float value : cpu.read(scaled)) sum += static_cast<double>(value) * value;
    CHECK_CLOSE(0.5 * sum / cpu.read_as<double>(loss)[0], 1, 1e-4);
  }
}
