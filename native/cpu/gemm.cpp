#include "cpu/gemm.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cpu/openblas.h"

namespace sparsegpt::cpu {

namespace {

// BLIS's cache blocks: an A block [mc, kc] stays in L2, a B panel [kc, nr] in L1, the packed B [kc, nc] in L3. kc counts
// the 32-bit units of the panels: float32 elements or pairs of bfloat16 elements.
constexpr int64_t mc_target = 240, kc = 256, nc = 3072;

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;

Buffer aligned_floats(int64_t count) {
  void* p = std::aligned_alloc(64, static_cast<size_t>((count * 4 + 63) / 64 * 64));
  if (p == nullptr) throw std::bad_alloc();
  return Buffer(static_cast<float*>(p));
}

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

void store_upper(float* c, int64_t c_stride, const float* tile, int64_t tile_stride, int64_t rows, int64_t columns,
                 int64_t below, bool accumulate) {
  for (int64_t i = 0; i < rows; ++i, c += c_stride, tile += tile_stride)
    for (int64_t j = std::max<int64_t>(below + i, 0); j < columns; ++j) c[j] = accumulate ? c[j] + tile[j] : tile[j];
}

void gemm_packed(ThreadPool& pool, const Kernels& kernels, const Gemm& g) {
  const int64_t mr = kernels.mr, nr = kernels.nr;
  if (g.k == 0) {
    if (!g.accumulate)
      for (int64_t i = 0; i < g.m; ++i) std::fill_n(g.c + i * g.c_stride, g.n, 0.0f);
    return;
  }
  const bool pairs = kernels.micro_pairs != nullptr && g.a.dtype == DType::bf16 && g.b.dtype == DType::bf16;
  const int64_t unit = pairs ? 2 : 1, mc = mc_target / mr * mr;
  const int64_t units_max = std::min(kc, (g.k + unit - 1) / unit), columns_max = round_up(std::min(nc, g.n), nr);
  const Buffer b_packed = aligned_floats(columns_max * units_max);
  const Buffer a_packed = aligned_floats(pool.threads() * mc * units_max);

  for (int64_t j0 = 0; j0 < g.n; j0 += nc) {
    const int64_t columns = std::min(nc, g.n - j0);
    const int64_t panels = (columns + nr - 1) / nr;
    for (int64_t p0 = 0; p0 < g.k; p0 += kc * unit) {
      const int64_t depth = std::min(kc * unit, g.k - p0), units = (depth + unit - 1) / unit;
      constexpr int64_t panels_per_task = 8;
      pool.parallel_for((panels + panels_per_task - 1) / panels_per_task, [&](int64_t task, int) {
        const int64_t first = task * panels_per_task * nr;
        const int64_t count = std::min(panels_per_task * nr, columns - first);
        float* b = b_packed.get() + first * units;
        const void* source = g.b.at(p0, j0 + first);
        if (pairs) {
          kernels.pack_pairs(b, nr, source, g.b.column_stride, g.b.row_stride, count, depth);
        } else {
          kernels.pack_b(b, source, g.b.dtype, g.b.row_stride, g.b.column_stride, depth, count);
        }
      });
      const bool accumulate = g.accumulate || p0 > 0;
      pool.parallel_for((g.m + mc - 1) / mc, [&](int64_t task, int thread) {
        const int64_t i0 = task * mc;
        const int64_t rows = std::min(mc, g.m - i0);
        if (g.triangle == Triangle::upper && j0 + columns <= i0) return;
        float* a = a_packed.get() + thread * mc * units_max;
        if (pairs) {
          kernels.pack_pairs(a, mr, g.a.at(i0, p0), g.a.row_stride, g.a.column_stride, rows, depth);
        } else {
          kernels.pack_a(a, g.a.at(i0, p0), g.a.dtype, g.a.row_stride, g.a.column_stride, rows, depth, g.alpha);
        }
        const auto multiply = [&](const float* a_panel, const float* b_panel, float* c, int64_t c_stride, int64_t height,
                                  int64_t width, bool add) {
          if (pairs) {
            kernels.micro_pairs(units, a_panel, b_panel, c, c_stride, height, width, g.alpha, add);
          } else {
            kernels.micro(units, a_panel, b_panel, c, c_stride, height, width, add);
          }
        };
        std::vector<float> tile(static_cast<size_t>(mr * nr));
        for (int64_t j = 0; j < columns; j += nr) {
          const int64_t width = std::min(nr, columns - j);
          const float* b = b_packed.get() + j * units;
          for (int64_t i = 0; i < rows; i += mr) {
            const int64_t height = std::min(mr, rows - i), below = i0 + i - (j0 + j);
            float* c = g.c + (i0 + i) * g.c_stride + j0 + j;
            if (g.triangle == Triangle::full || below + height <= 1) {
              multiply(a + i * units, b, c, g.c_stride, height, width, accumulate);
            } else if (below < width) {
              multiply(a + i * units, b, tile.data(), nr, height, width, false);
              store_upper(c, g.c_stride, tile.data(), nr, height, width, below, accumulate);
            } else {
              break;
            }
          }
        }
      });
    }
  }
}

void gemm(ThreadPool& pool, const Kernels& kernels, const Gemm& g) {
  if (openblas::serves(g)) {
    openblas::gemm(pool, g);
  } else {
    gemm_packed(pool, kernels, g);
  }
}

}  // namespace sparsegpt::cpu
