// Operations row by row: norms, rotary embedding, and moving rows about.
#include "cpu/rows.h"

#include <cstring>
#include <string>

#include "core/error.h"
#include "cpu/cpu_backend.h"

namespace sparsegpt::cpu {

SPARSEGPT_KERNEL(layer_norm, void, float* out, const float* x, const float* weight, const float* bias, int64_t count,
                 float epsilon);
SPARSEGPT_KERNEL(rms_norm, void, float* out, const float* x, const float* weight, int64_t count, float epsilon);
SPARSEGPT_KERNEL(rotary, void, float* x, const float* cosine, const float* sine, int64_t pairs, bool interleaved);

void CpuBackend::compute(const Embedding& o) {
  const int32_t* id = o.ids.data<int32_t>();
  for (int64_t t = 0; t < o.out.rows; ++t)
    if (id[t] < 0 || id[t] >= o.table.rows)
      throw Error("INVALID_OPTION", "token id " + std::to_string(id[t]) + " at position " + std::to_string(t) +
                                        " is outside the table of " + std::to_string(o.table.rows) + " entries");
  for_rows(pool_, o.out.rows, o.out.columns, [&](int64_t t, std::vector<float>& row) {
    row.resize(static_cast<size_t>(o.out.columns));
    to_float[level_](row.data(), row_of(o.table, id[t]), o.table.dtype, o.out.columns);
    from_float[level_](row_of(o.out, t), o.out.dtype, row.data(), o.out.columns);
  });
}

void CpuBackend::compute(const LayerNorm& o) {
  map_rows(pool_, level_, o.out, o.x, [&](float* y, const float* x) {
    layer_norm[level_](y, x, o.weight.data<float>(), o.bias.data<float>(), o.x.columns, o.epsilon);
  });
}

void CpuBackend::compute(const RmsNorm& o) {
  map_rows(pool_, level_, o.out, o.x,
           [&](float* y, const float* x) { rms_norm[level_](y, x, o.weight.data<float>(), o.x.columns, o.epsilon); });
}

void CpuBackend::compute(const Rotary& o) {
  const int32_t* position = o.positions.data<int32_t>();
  for (int64_t t = 0; t < o.x.rows; ++t)
    require(position[t] >= 0 && position[t] < o.cosine.rows,
            "position " + std::to_string(position[t]) + " has no row in cosine " + describe(o.cosine));
  const int64_t pairs = o.cosine.columns;
  map_rows(pool_, level_, o.x, o.x, [&](float* y, const float*, int64_t t) {
    const int64_t angles = position[t] * pairs;
    for (int64_t h = 0; h < o.x.columns; h += o.head_dim)
      rotary[level_](y + h, o.cosine.data<float>() + angles, o.sine.data<float>() + angles, pairs, o.interleaved);
  });
}

void CpuBackend::compute(const TakeColumns& o) {
  const auto bytes = static_cast<size_t>(o.count) * dtype_size(o.x.dtype);
  for_rows(pool_, o.x.rows, o.out.columns, [&](int64_t t, std::vector<float>&) {
    for (int64_t g = 0; g < o.out.columns / o.count; ++g)
      std::memcpy(element(o.out, t, g * o.count), element(o.x, t, g * o.stride + o.first), bytes);
  });
}

void CpuBackend::compute(const ScatterAdd& o) {
  const int32_t* id = o.ids.data<int32_t>();
  for (int64_t t = 0; t < o.x.rows; ++t)
    require(id[t] >= 0 && id[t] < o.out.rows, "row " + std::to_string(id[t]) + " is outside output " + describe(o.out));
  const int64_t columns = o.x.columns;
  for_rows(pool_, o.x.rows, columns, [&](int64_t t, std::vector<float>& row) {
    row.resize(static_cast<size_t>(2 * columns));
    float *sum = row.data(), *term = sum + columns;
    to_float[level_](sum, row_of(o.out, id[t]), o.out.dtype, columns);
    to_float[level_](term, row_of(o.x, t), o.x.dtype, columns);
    scale[level_](term, o.factors.data<float>()[t], columns);
    add[level_](sum, term, columns);
    from_float[level_](row_of(o.out, id[t]), o.out.dtype, sum, columns);
  });
}

}  // namespace sparsegpt::cpu
