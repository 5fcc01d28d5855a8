#include "cpu/few_rows.h"

#include <algorithm>

#include "cpu/spans.h"

namespace sparsegpt::cpu {

namespace {

// Floats of A that are converted.
int64_t converted_floats(Level level, const Gemm& g) {
  return g.a.dtype == DType::f32 || multiplies_pairs(level, g) ? 0 : g.m * g.k;
}

}  // namespace

bool has_few_rows(const Gemm& g) {
  const bool along_rows = g.a.column_stride == 1 && g.b.row_stride == 1;
  return g.m <= few_rows_most && along_rows && g.b.dtype != DType::f16 && !g.accumulate && g.triangle == Triangle::full;
}

size_t few_rows_scratch(Level level, const Gemm& g) { return Scratch<float>::bytes(converted_floats(level, g)); }

void multiply_few_rows(ThreadPool& pool, Level level, const Gemm& g) {
  const int64_t floats = converted_floats(level, g);
  const auto converted = pool.scratch<float>(floats);
  if (floats > 0)
    for (int64_t i = 0; i < g.m; ++i) to_float[level](converted.data() + i * g.k, g.a.at(i, 0), g.a.dtype, g.k);

  // Parts of whole groups of columns, of at least 64 KB of B each.
  constexpr int64_t group = 4, least_elements = 16384;
  const int64_t groups = divide_up(g.n, group);
  const int64_t parts =
      std::clamp(g.n * g.k / least_elements, int64_t{1}, std::min<int64_t>(groups, int64_t{4} * pool.threads()));
  pool.parallel_for(parts, [&](int64_t part, int) {
    const int64_t first = cut(groups, part, parts) * group, end = std::min(cut(groups, part + 1, parts) * group, g.n);
    FewRows o{};
    o.rows = g.m;
    o.columns = end - first;
    o.depth = g.k;
    o.a = floats > 0 ? converted.data() : g.a.data;
    o.a_dtype = floats > 0 ? DType::f32 : g.a.dtype;
    o.a_stride = floats > 0 ? g.k : g.a.row_stride;
    o.b = g.b.at(0, first);
    o.b_dtype = g.b.dtype;
    o.b_stride = g.b.column_stride;
    o.alpha = g.alpha;
    o.bias = g.bias == nullptr ? nullptr : g.bias + first;
    o.c = static_cast<char*>(g.c) + first * static_cast<int64_t>(dtype_size(g.dtype));
    o.c_dtype = g.dtype;
    o.c_stride = g.c_stride;
    multiply_few[level](o);
  });
}

}  // namespace sparsegpt::cpu
