// Looking at weights.
#include <vector>

#include "cpu/cpu_backend.h"
#include "cpu/rows.h"

namespace sparsegpt::cpu {

void CpuBackend::compute(const CountZeros& o) {
  const Tensor& tensor = o.tensor;
  const int64_t patterns = o.pattern_count();
  const int32_t* pattern = patterns > 0 ? o.patterns.data<int32_t>() : nullptr;
  struct Row {
    int64_t zeros = 0;
    uint32_t broken = 0;  // bit p: pattern p does not hold
  };
  std::vector<Row> rows(static_cast<size_t>(tensor.rows));
  for_rows(pool_, tensor.rows, tensor.columns, [&](int64_t i, std::vector<float>& values) {
    values.resize(static_cast<size_t>(tensor.columns));
    to_float[level_](values.data(), row_of(tensor, i), tensor.dtype, tensor.columns);
    Row& row = rows[static_cast<size_t>(i)];
    for (float value : values) row.zeros += value == 0;
    for (int64_t p = 0; p < patterns; ++p) {
      const int32_t n = pattern[2 * p], m = pattern[2 * p + 1];
      bool holds = tensor.columns % m == 0;
      for (int64_t j = 0; holds && j < tensor.columns; j += m) {
        int32_t zeros = 0;
        for (int64_t g = j; g < j + m; ++g) zeros += values[static_cast<size_t>(g)] == 0;
        holds = zeros >= n;
      }
      if (!holds) row.broken |= 1u << p;
    }
  });
  Row all;
  for (const Row& row : rows) {
    all.zeros += row.zeros;
    all.broken |= row.broken;
  }
  double* stats = o.stats.data<double>();
  stats[0] = static_cast<double>(all.zeros);
  for (int64_t p = 0; p < patterns; ++p) stats[1 + p] = (all.broken >> p & 1u) == 0;
}

}  // namespace sparsegpt::cpu
