// Least squares over the kept weights of a matrix.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/cpu_backend.h"
#include "cpu/gemm.h"
#include "cpu/rows.h"
#include "cpu/scratch_model.h"
#include "cpu/triangle.h"

namespace sparsegpt::cpu {

// Σ a b, in double.
SPARSEGPT_KERNEL(dot, double, const float* a, const float* b, int64_t count);
// x += step · direction and residual -= step · image; the residual is zero where masked. Returns the residual's square.
SPARSEGPT_KERNEL(descend, double, float* x, float* residual, const float* direction, const float* image, const uint8_t* mask,
                 float step, int64_t count);
// direction = residual + factor · direction
SPARSEGPT_KERNEL(redirect, void, float* direction, const float* residual, float factor, int64_t count);

void CpuBackend::compute(const NormalizeGram& o) {
  const int64_t n = o.gram.columns;
  float *gram = o.gram.data<float>(), *norms = o.norms.data<float>();
  for (int64_t j = 0; j < n; ++j) norms[j] = std::sqrt(gram[j * n + j]);
  const auto inverse = [&](int64_t j) { return norms[j] == 0 ? 0.0f : 1 / norms[j]; };
  pool_.parallel_for(n, [&](int64_t i, int) {
    float* row = gram + i * n;
    const float own = inverse(i);
    for (int64_t j = i; j < n; ++j) row[j] *= own * inverse(j);
    if (own != 0) row[i] = 1;
  });
}

void CpuBackend::compute(const ScaleColumns& o) {
  const int64_t columns = o.x.columns;
  const float* factors = o.factors.data<float>();
  for_rows(pool_, o.x.rows, columns, [&](int64_t i, std::vector<float>&) {
    float* x = o.x.data<float>() + i * columns;
    for (int64_t j = 0; j < columns; ++j) x[j] = !o.inverse ? x[j] * factors[j] : factors[j] == 0 ? 0 : x[j] / factors[j];
  });
}

void CpuBackend::compute(const ConjugateGradients& o) {
  const int64_t n = o.weight.columns, most = o.tile_rows(), elements = most * n;
  const auto direction = pool_.scratch<float>(elements), half = pool_.scratch<float>(elements),
             image = pool_.scratch<float>(elements);
  const auto block = pool_.scratch<float>(triangle_block(n));
  const auto squares = pool_.scratch<double>(most);
  const Part<const float> factor{o.factor.data<float>(), n};
  double* report = o.report.data<double>();
  report[descent_report::iterations] = report[descent_report::residual] = 0;
  for (int64_t begin = 0; begin < o.weight.rows; begin += most) {
    const int64_t rows = std::min(most, o.weight.rows - begin);
    const auto each_row = [&](const auto& body) {
      for_rows(pool_, rows, n, [&](int64_t i, std::vector<float>&) {
        const int64_t at = (begin + i) * n;
        body(i, o.weight.data<float>() + at, o.residual.data<float>() + at, o.mask.data<uint8_t>() + at,
             direction.data() + i * n, image.data() + i * n);
      });
    };
    const auto total = [&] {
      double sum = 0;
      for (int64_t i = 0; i < rows; ++i) sum += squares[i];
      return sum;
    };
    each_row([&](int64_t i, float* x, float* residual, const uint8_t* mask, float* p, float*) {
      squares[i] = descend[level_](x, residual, residual, residual, mask, 0, n);
      std::copy_n(residual, n, p);
    });
    const double first = total();
    double left = first;
    int64_t iteration = 0;
    for (; iteration < o.iterations && left > o.tolerance * o.tolerance * first; ++iteration) {
      multiply_triangle(pool_, level_, {half.data(), n}, {direction.data(), n}, rows, n, factor, false, block.data());
      multiply_triangle(pool_, level_, {image.data(), n}, {half.data(), n}, rows, n, factor, true, block.data());
      each_row([&](int64_t i, float* x, float* residual, const uint8_t* mask, float* p, float* q) {
        const double length = dot[level_](p, q, n), before = squares[i];
        // A row that has come to its end stays there.
        if (!(length > 0) || before == 0) {
          squares[i] = 0;
          return;
        }
        squares[i] = descend[level_](x, residual, p, q, mask, static_cast<float>(before / length), n);
        redirect[level_](p, residual, static_cast<float>(squares[i] / before), n);
      });
      left = total();
    }
    report[descent_report::iterations] = std::max(report[descent_report::iterations], static_cast<double>(iteration));
    if (first > 0) report[descent_report::residual] = std::max(report[descent_report::residual], std::sqrt(left / first));
  }
}

size_t CpuScratch::bytes(const ConjugateGradients& o) const {
  const int64_t rows = o.tile_rows(), n = o.weight.columns;
  return 3 * Scratch<float>::bytes(rows * n) + Scratch<float>::bytes(triangle_block(n)) + Scratch<double>::bytes(rows) +
         multiply_scratch(level_, threads_, rows, n);
}

}  // namespace sparsegpt::cpu
