#include "cpu/factor.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/error.h"
#include "cpu/gemm.h"

namespace sparsegpt::cpu {

namespace {

// The factorisation of one matrix [n, n], in place: recursive halves, so that nearly all work is in large products. Only the
// upper triangle is touched.
class Factorisation {
 public:
  Factorisation(ThreadPool& pool, const Kernels& kernels, float* a, int64_t n)
      : pool_(pool), kernels_(kernels), a_(a), n_(n), scratch_(pool.scratch<float>(pool.threads() * factor_scratch)) {}

  // False when a pivot is not positive.
  bool run() { return factor(0, n_); }

 private:
  // Factors the block on the diagonal:
  //   [A11 A12]   [R11 R12] [R11ᵀ   0 ]
  //   [ .  A22] = [ 0  R22] [R12ᵀ R22ᵀ], so A22 = R22 R22ᵀ, R12 = A12 R22⁻ᵀ and A11 - R12 R12ᵀ = R11 R11ᵀ.
  bool factor(int64_t begin, int64_t end) {
    if (end - begin <= factor_columns) return kernels_.factor_block(at(begin, begin), n_, end - begin, scratch_.data());
    const int64_t middle = split(begin, end);
    if (!factor(middle, end)) return false;
    solve(begin, middle, middle, end);
    subtract_product(begin, middle, begin, middle, middle, end, Triangle::upper);
    return factor(begin, middle);
  }

  // A = A R⁻ᵀ for the rows [top, bottom) of the columns [begin, end), whose block on the diagonal is factored.
  void solve(int64_t top, int64_t bottom, int64_t begin, int64_t end) {
    if (end - begin <= factor_columns) {
      pool_.parallel_for((bottom - top + lanes - 1) / lanes, [&](int64_t tile, int thread) {
        const int64_t row = top + tile * lanes;
        kernels_.solve_panel(at(row, begin), at(begin, begin), n_, std::min(lanes, bottom - row), end - begin,
                             scratch_.data() + thread * factor_scratch);
      });
      return;
    }
    const int64_t middle = split(begin, end);
    solve(top, bottom, middle, end);
    subtract_product(top, bottom, begin, middle, middle, end, Triangle::full);
    solve(top, bottom, begin, middle);
  }

  // A[rows, columns] -= R[rows, inner] R[columns, inner]ᵀ
  void subtract_product(int64_t top, int64_t bottom, int64_t begin, int64_t end, int64_t inner_begin, int64_t inner_end,
                        Triangle triangle) {
    Gemm product{bottom - top,
                 end - begin,
                 inner_end - inner_begin,
                 operand(at(top, inner_begin), n_),
                 operand(at(begin, inner_begin), n_).transposed(),
                 at(top, begin),
                 n_};
    product.alpha = -1;
    product.accumulate = true;
    product.triangle = triangle;
    gemm(pool_, kernels_, product);
  }

  // Blocks are whole but for the first.
  static int64_t split(int64_t begin, int64_t end) {
    const int64_t blocks = (end - begin + factor_columns - 1) / factor_columns;
    return end - blocks / 2 * factor_columns;
  }

  float* at(int64_t row, int64_t column) const { return a_ + row * n_ + column; }

  ThreadPool& pool_;
  const Kernels& kernels_;
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

void copy_upper_to_lower(ThreadPool& pool, const Kernels& kernels, float* a, int64_t n) {
  for_upper_tiles(pool, n, [&](int64_t i0, int64_t j0) {
    const int64_t size = std::min(lanes, n - j0);
    if (j0 > i0) {
      kernels.transpose(a + j0 * n + i0, n, a + i0 * n + j0, n, size);
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

FactorReport factor_hessian(ThreadPool& pool, const Kernels& kernels, float* hessian, int64_t n, uint8_t* dead,
                            double dampening) {
  // Cholesky does not notice NaN or infinity off the diagonal.
  std::vector<uint8_t> finite(static_cast<size_t>(n), 1);
  pool.parallel_for(
      n, [&](int64_t i, int) { finite[static_cast<size_t>(i)] = kernels.all_finite(hessian + i * n + i, n - i); });
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
  copy_upper_to_lower(pool, kernels, hessian, n);
  Factorisation factorisation(pool, kernels, hessian, n);
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

}  // namespace sparsegpt::cpu
