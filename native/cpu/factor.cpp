#include "cpu/factor.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/error.h"
#include "cpu/gemm.h"

namespace sparsegpt::cpu {

namespace {

constexpr int64_t panel = 128;

// Factors the diagonal block in place, A = R Rᵀ, from the last row up. False when a pivot is not positive.
bool factor_block(float* a, int64_t stride, int64_t size) {
  for (int64_t j = size - 1; j >= 0; --j) {
    const float* rj = a + j * stride;
    double pivot = rj[j];
    for (int64_t k = j + 1; k < size; ++k) pivot -= static_cast<double>(rj[k]) * rj[k];
    if (!(pivot > 0) || !std::isfinite(pivot)) return false;
    const double root = std::sqrt(pivot);
    a[j * stride + j] = static_cast<float>(root);
    for (int64_t i = 0; i < j; ++i) {
      const float* ri = a + i * stride;
      double sum = ri[j];
      for (int64_t k = j + 1; k < size; ++k) sum -= static_cast<double>(ri[k]) * rj[k];
      a[i * stride + j] = static_cast<float>(sum / root);
    }
  }
  return true;
}

// Right-looking, from the last block column to the first: factor the block, solve the panel above it, update what is left
// above and to the left. Only the upper triangle is touched.
bool factor_upper(ThreadPool& pool, const Kernels& kernels, float* a, int64_t n) {
  std::vector<float> inverse(static_cast<size_t>(panel * panel)), solved;
  for (int64_t end = n; end > 0;) {
    const int64_t size = std::min(panel, end), begin = end - size;
    if (!factor_block(a + begin * n + begin, n, size)) return false;
    if (begin > 0) {
      // Panel P = A[0:begin, block] R_blockᵀ⁻¹, through the explicit inverse of the small block.
      invert_upper(a + begin * n + begin, n, size, inverse.data());
      solved.resize(static_cast<size_t>(begin * size));
      gemm(pool, kernels,
           {begin, size, size, operand(a + begin, n), operand(inverse.data(), size).transposed(), solved.data(), size});
      pool.parallel_for((begin + 63) / 64, [&](int64_t task, int) {
        for (int64_t i = task * 64; i < std::min(begin, task * 64 + 64); ++i)
          std::copy_n(solved.data() + i * size, size, a + i * n + begin);
      });
      Gemm update{begin, begin, size, operand(solved.data(), size), operand(solved.data(), size).transposed(), a, n};
      update.alpha = -1;
      update.accumulate = true;
      update.triangle = Triangle::upper;
      gemm(pool, kernels, update);
    }
    end = begin;
  }
  return true;
}

// Calls body(i0, i1, j0, j1) in parallel for the tiles of the upper triangle.
template <typename Body>
void for_upper_tiles(ThreadPool& pool, int64_t n, const Body& body) {
  constexpr int64_t side = 64;
  const int64_t tiles = (n + side - 1) / side;
  pool.parallel_for(tiles * tiles, [&](int64_t task, int) {
    const int64_t i = task / tiles * side, j = task % tiles * side;
    if (j >= i) body(i, std::min(i + side, n), j, std::min(j + side, n));
  });
}

}  // namespace

void invert_upper(const float* r, int64_t stride, int64_t size, float* out) {
  std::vector<double> row(static_cast<size_t>(size));
  // Row i of the inverse from the rows below it: X[i, j] = -(Σ_{k>i} R[i, k] X[k, j]) / R[i, i].
  for (int64_t i = size - 1; i >= 0; --i) {
    const double inverse = 1.0 / r[i * stride + i];
    std::fill(row.begin(), row.end(), 0.0);
    for (int64_t k = i + 1; k < size; ++k) {
      const double factor = r[i * stride + k];
      const float* below = out + k * size;
      for (int64_t j = k; j < size; ++j) row[static_cast<size_t>(j)] += factor * below[j];
    }
    for (int64_t j = 0; j < i; ++j) out[i * size + j] = 0;
    out[i * size + i] = static_cast<float>(inverse);
    for (int64_t j = i + 1; j < size; ++j) out[i * size + j] = static_cast<float>(-inverse * row[static_cast<size_t>(j)]);
  }
}

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
  for_upper_tiles(pool, n, [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    for (int64_t i = i0; i < i1; ++i)
      for (int64_t j = std::max(i + 1, j0); j < j1; ++j) hessian[j * n + i] = hessian[i * n + j];
  });
  for (report.dampening = dampening;; ++report.retries) {
    for (int64_t j = 0; j < n; ++j)
      hessian[j * n + j] = static_cast<float>(diagonal[static_cast<size_t>(j)] + report.dampening * mean);
    if (factor_upper(pool, kernels, hessian, n)) return report;
    if (report.retries == 3) break;
    report.dampening = report.dampening > 0 ? report.dampening * 10 : 0.001;
    for_upper_tiles(pool, n, [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
      for (int64_t i = i0; i < i1; ++i)
        for (int64_t j = std::max(i + 1, j0); j < j1; ++j) hessian[i * n + j] = hessian[j * n + i];
    });
  }
  throw Error("NOT_POSITIVE_DEFINITE", "the Hessian cannot be factored, even with dampening " +
                                           std::to_string(report.dampening) +
                                           ": it is not a Gram matrix of the layer's inputs, or these are degenerate");
}

}  // namespace sparsegpt::cpu
