// The factorisation of the damped Hessian.
#include <algorithm>

#include "cpu/dispatch.h"
#include "test/problem.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

cpu::Level widest() { return cpu::available_levels().back(); }

// The largest deviation of R Rᵀ from the damped Hessian, relative to its largest entry.
double factor_error(const Problem& p, const std::vector<float>& r, double dampening) {
  const auto h = damped_hessian(p, dampening);
  const int64_t n = p.columns;
  double worst = 0, largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i; j < n; ++j) {
      double sum = 0;
      for (int64_t k = j; k < n; ++k)
        sum += static_cast<double>(r[static_cast<size_t>(i * n + k)]) * r[static_cast<size_t>(j * n + k)];
      const double expected = h[static_cast<size_t>(i * n + j)];
      worst = std::max(worst, std::fabs(sum - expected));
      largest = std::max(largest, std::fabs(expected));
      if (std::isnan(sum)) return NAN;
    }
  }
  return worst / largest;
}

// Adds `shift` · mean(diagonal) to the diagonal.
void shift_diagonal(Problem& p, double shift) {
  double mean = 0;
  for (int64_t j = 0; j < p.columns; ++j) mean += p.hessian[static_cast<size_t>(j * p.columns + j)];
  mean /= static_cast<double>(p.columns);
  for (int64_t j = 0; j < p.columns; ++j)
    p.hessian[static_cast<size_t>(j * p.columns + j)] += static_cast<float>(shift * mean);
}

cpu::FactorReport factor(std::vector<float>& h, int64_t n, double dampening, int threads = 2) {
  ThreadPool pool(threads);
  std::vector<uint8_t> dead(static_cast<size_t>(n));
  return cpu::factor_hessian(pool, widest(), h.data(), n, dead.data(), dampening);
}

}  // namespace

TEST("factor: R Rᵀ is the damped Hessian; only the upper triangle is read") {
  for (int64_t n : {1, 2, 31, 127, 128, 129, 300, 500}) {
    Random random(static_cast<uint64_t>(n));
    const auto p = random_problem(random, 1, n, n / 2 + 10);
    auto r = p.hessian;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < i; ++j) r[static_cast<size_t>(i * n + j)] = NAN;
    describe_case("n ", n);
    const auto report = factor(r, n, 0.01);
    CHECK_EQUAL(report.retries, 0);
    CHECK_EQUAL(report.dampening, 0.01);
    CHECK(factor_error(p, r, 0.01) < 3e-6);
  }
}

TEST("factor: bit for bit the same on 1, 2 and 3 threads") {
  Random random(1);
  const auto p = random_problem(random, 1, 450, 500);
  auto one = p.hessian;
  factor(one, 450, 0.01, 1);
  for (int threads : {2, 3}) {
    auto r = p.hessian;
    factor(r, 450, 0.01, threads);
    CHECK(r == one);
  }
}

TEST("factor: an indefinite Hessian gets more dampening and is factored from the start") {
  // Beyond one panel (128) the first try has changed much before it fails.
  for (int64_t n : {40, 129, 300, 600}) {
    for (double shift : {-0.05, -0.5, -5.0}) {
      Random random(static_cast<uint64_t>(n));
      auto p = random_problem(random, 1, n, n / 3);  // singular: the smallest eigenvalue is the shift
      shift_diagonal(p, shift / (1 + std::fabs(shift)));
      // The shift scales the mean down too, so `shift` is what the dampening has to exceed.
      auto r = p.hessian;
      describe_case("n ", n, ", shift ", shift);
      const auto report = factor(r, n, 0.01);
      CHECK_EQUAL(report.retries, shift > -0.1 ? 1 : shift > -1 ? 2 : 3);
      CHECK_CLOSE(report.dampening, shift > -0.1 ? 0.1 : shift > -1 ? 1.0 : 10.0, 1e-12);
      CHECK(factor_error(p, r, report.dampening) < 3e-6);
    }
  }
}

TEST("factor: another try starts from H even when only the last pivot fails") {
  for (int64_t n : {129, 300, 600, 900}) {
    Random random(static_cast<uint64_t>(n));
    auto p = random_problem(random, 1, n, 2 * n);
    // Column 0 repeats column 1, but for a diagonal that is too small by a tenth.
    for (int64_t j = 1; j < n; ++j) p.hessian[static_cast<size_t>(j)] = p.hessian[static_cast<size_t>(n + j)];
    p.hessian[0] = 0.9f * p.hessian[static_cast<size_t>(n + 1)];
    auto r = p.hessian;
    describe_case("n ", n);
    const auto report = factor(r, n, 1e-4);
    CHECK(report.retries > 0);
    CHECK(factor_error(p, r, report.dampening) < 3e-6);
  }
}

TEST("factor: no dampening on a singular Hessian") {
  Random random(3);
  auto p = random_problem(random, 1, 200, 50);
  auto r = p.hessian;
  const auto report = factor(r, 200, 0);
  CHECK(report.retries >= 1 && report.dampening > 0);
  CHECK(factor_error(p, r, report.dampening) < 3e-6);
}

TEST("factor: what cannot be factored says so") {
  Random random(4);
  for (int64_t n : {20, 200}) {
    describe_case("n ", n);
    auto p = random_problem(random, 1, n, 2 * n);
    auto negative = p.hessian;
    for (float& value : negative) value = -value;
    CHECK_THROWS_CODE(factor(negative, n, 0.01), "NOT_POSITIVE_DEFINITE", "cannot be factored, even with dampening 10");
    auto large = p.hessian;
    large[static_cast<size_t>(n - 1)] = 1e6f;  // |H_ij| far above both diagonal entries
    CHECK_THROWS_CODE(factor(large, n, 0.01), "NOT_POSITIVE_DEFINITE", "");
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      for (int64_t at : {int64_t{0}, n - 1, (n / 2) * n + n / 2, (n - 2) * n + n - 1}) {
        auto h = p.hessian;
        h[static_cast<size_t>(at)] = bad;
        CHECK_THROWS_CODE(factor(h, n, 0.01), "NON_FINITE", "row " + std::to_string(at / n));
      }
    }
  }
}

TEST("factor: dead columns are marked and counted") {
  Random random(5);
  auto p = random_problem(random, 1, 150, 300);
  for (int64_t j : {0, 77, 149})
    for (int64_t i = 0; i < 150; ++i)
      p.hessian[static_cast<size_t>(i * 150 + j)] = p.hessian[static_cast<size_t>(j * 150 + i)] = 0;
  ThreadPool pool(2);
  std::vector<uint8_t> dead(150, 7);
  auto r = p.hessian;
  const auto report = cpu::factor_hessian(pool, widest(), r.data(), 150, dead.data(), 0.01);
  CHECK_EQUAL(report.dead_columns, int64_t{3});
  for (size_t j = 0; j < dead.size(); ++j) CHECK_EQUAL(int{dead[j]}, j == 0 || j == 77 || j == 149 ? 1 : 0);
  CHECK(factor_error(p, r, 0.01) < 3e-6);
}
