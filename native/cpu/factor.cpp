#include "cpu/factor.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/error.h"
#include "cpu/cpu_backend.h"
#include "cpu/gemm.h"
#include "cpu/scratch_model.h"
#include "cpu/spans.h"
#include "cpu/triangle.h"

namespace sparsegpt::cpu {

namespace {

// The factorisation of one matrix [n, n], in place: recursive halves, so that nearly all work is in large products. Only the
// upper triangle is touched.
class Factorisation {
 public:
  Factorisation(ThreadPool& pool, Level level, float* a, int64_t n)
      : pool_(pool), level_(level), a_(a), n_(n), scratch_(pool.scratch<float>(pool.threads() * factor_scratch)) {}

  // False when a pivot is not positive.
  bool run() { return factor(0, n_); }

 private:
  // Factors the block on the diagonal:
  //   [A11 A12]   [R11 R12] [R11ᵀ   0 ]
  //   [ .  A22] = [ 0  R22] [R12ᵀ R22ᵀ], so A22 = R22 R22ᵀ, R12 = A12 R22⁻ᵀ and A11 - R12 R12ᵀ = R11 R11ᵀ.
  bool factor(int64_t begin, int64_t end) {
    if (end - begin <= factor_columns) return factor_block[level_](at(begin, begin), n_, end - begin, scratch_.data());
    const int64_t middle = begin + split_columns(end - begin), rest = end - middle;
    if (!factor(middle, end)) return false;
    float* beside = at(begin, middle);  // A12
    solve_triangle(pool_, level_, {beside, n_}, middle - begin, rest, {at(middle, middle), n_}, true, scratch_.data());
    Gemm product{
        middle - begin, middle - begin, rest, operand(beside, n_), operand(beside, n_).transposed(), at(begin, begin), n_};
    product.alpha = -1;
    product.accumulate = true;
    product.triangle = Triangle::upper;
    gemm(pool_, level_, product);
    return factor(begin, middle);
  }

  float* at(int64_t row, int64_t column) const { return a_ + row * n_ + column; }

  ThreadPool& pool_;
  const Level level_;
  float* a_;
  int64_t n_;
  Scratch<float> scratch_;
};

// Calls body(i, j) in parallel for the tiles on and above the diagonal, with their first row and column; they are `lanes` wide.
template <typename Body>
void for_upper_tiles(ThreadPool& pool, int64_t n, const Body& body) {
  const int64_t tiles = (n + lanes - 1) / lanes;
  pool.parallel_for(tiles * tiles, [&](int64_t task, int) {
    const int64_t i = task / tiles * lanes, j = task % tiles * lanes;
    if (j >= i) body(i, j);
  });
}

void copy_upper_to_lower(ThreadPool& pool, Level level, float* a, int64_t n) {
  for_upper_tiles(pool, n, [&](int64_t i0, int64_t j0) {
    const int64_t size = std::min(lanes, n - j0);
    if (j0 > i0) {
      transpose[level](a + j0 * n + i0, n, a + i0 * n + j0, n, size);
    } else {
      for (int64_t i = i0; i < i0 + size; ++i)
        for (int64_t j = i + 1; j < i0 + size; ++j) a[j * n + i] = a[i * n + j];
    }
  });
}

void copy_lower_to_upper(ThreadPool& pool, float* a, int64_t n) {
  for_upper_tiles(pool, n, [&](int64_t i0, int64_t j0) {
    for (int64_t i = i0; i < std::min(i0 + lanes, n); ++i)
      for (int64_t j = std::max(i + 1, j0); j < std::min(j0 + lanes, n); ++j) a[i * n + j] = a[j * n + i];
  });
}

}  // namespace

FactorReport factor_hessian(ThreadPool& pool, Level level, float* hessian, int64_t n, uint8_t* dead, double dampening) {
  // Cholesky does not notice NaN or infinity off the diagonal.
  std::vector<uint8_t> finite(static_cast<size_t>(n), 1);
  pool.parallel_for(n,
                    [&](int64_t i, int) { finite[static_cast<size_t>(i)] = all_finite[level](hessian + i * n + i, n - i); });
  for (int64_t i = 0; i < n; ++i)
    if (!finite[static_cast<size_t>(i)])
      throw Error("NON_FINITE", "the Hessian has a NaN or infinite entry in row " + std::to_string(i) +
                                    ": the layer's inputs are not finite");

  FactorReport report;
  std::vector<float> diagonal(static_cast<size_t>(n));
  double mean = 0;
  for (int64_t j = 0; j < n; ++j) {
    float& h = diagonal[static_cast<size_t>(j)];
    h = hessian[j * n + j];
    dead[j] = h == 0;
    if (dead[j]) {
      h = 1;
      ++report.dead_columns;
    }
    mean += h;
  }
  mean /= static_cast<double>(n);

  // The factorisation writes the upper triangle only, so the lower one keeps H for another try.
  copy_upper_to_lower(pool, level, hessian, n);
  Factorisation factorisation(pool, level, hessian, n);
  for (report.dampening = dampening;; ++report.retries) {
    for (int64_t j = 0; j < n; ++j)
      hessian[j * n + j] = static_cast<float>(diagonal[static_cast<size_t>(j)] + report.dampening * mean);
    if (factorisation.run()) return report;
    if (report.retries == 3) break;
    report.dampening = report.dampening > 0 ? report.dampening * 10 : 0.001;
    copy_lower_to_upper(pool, hessian, n);
  }
  throw Error("NOT_POSITIVE_DEFINITE", "the Hessian cannot be factored, even with dampening " +
                                           std::to_string(report.dampening) +
                                           ": it is not a Gram matrix of the layer's inputs, or these are degenerate");
}

void CpuBackend::compute(const FactorHessian& o) {
  const FactorReport report =
      factor_hessian(pool_, level_, o.hessian.data<float>(), o.hessian.columns, o.dead.data<uint8_t>(), o.dampening);
  double* out = o.report.data<double>();
  out[factor_report::dampening] = report.dampening;
  out[factor_report::retries] = report.retries;
  out[factor_report::dead_columns] = static_cast<double>(report.dead_columns);
}

size_t CpuScratch::bytes(const FactorHessian& o) const {
  const int64_t n = o.hessian.columns;
  const Operand any = operand(static_cast<const float*>(nullptr), n);
  size_t most = 0;
  for (int64_t size = n; size > factor_columns;) {
    const int64_t middle = split_columns(size), rest = size - middle;
    Gemm product{middle, middle, rest, any, any.transposed(), nullptr, n};
    product.triangle = Triangle::upper;
    most = std::max({most, solve_scratch(level_, threads_, middle, rest), gemm_scratch(level_, threads_, product)});
    size = std::max(middle, rest);
  }
  return Scratch<float>::bytes(threads_ * factor_scratch) + most;
}

}  // namespace sparsegpt::cpu
