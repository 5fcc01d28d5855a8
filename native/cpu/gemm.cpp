#include "cpu/gemm.h"

#include <algorithm>

#include "core/require.h"

namespace sparsegpt::cpu {

namespace {

// Lengths along the depth count units, the 32 bits of a panel: a float32 element or a pair of bfloat16 elements.
//
// An A block of about [block_rows, block_depth] stays in L2, beside the B panel [block_depth, nr] that it meets. B is packed
// for all threads, as much at once as fits into L3. A thread sums the parts of a depth beyond one block in C itself, or, when
// C is not float32, in an array of its own of block_rows x block_columns.
constexpr int64_t block_rows = 144, block_depth = 512, block_columns = 1024;
constexpr int64_t packed_b_floats = int64_t{4} << 20;
// What the scratch memory of a product is bounded by: B 16 MB, and for each thread A 0.3 MB and the sums 0.6 MB.

int64_t parts(int64_t length, int64_t most) { return std::max<int64_t>((length + most - 1) / most, 1); }
int64_t round_up(int64_t value, int64_t multiple) { return parts(value, multiple) * multiple; }
// The length of equal parts, each a multiple.
int64_t even(int64_t length, int64_t most, int64_t multiple) {
  return round_up((length + parts(length, most) - 1) / parts(length, most), multiple);
}

}  // namespace

void gemm(ThreadPool& pool, const Kernels& kernels, const Gemm& g) {
  const int64_t mr = kernels.mr, nr = kernels.nr, threads = pool.threads();
  const bool direct = g.dtype == DType::f32;
  require((direct && g.bias == nullptr) || !g.accumulate, "a product that is added has a float32 result and no bias");
  if (g.m == 0 || g.n == 0) return;
  const bool pairs = kernels.micro_pairs != nullptr && g.a.dtype == DType::bf16 && g.b.dtype == DType::bf16;
  const int64_t unit = pairs ? 2 : 1, units = (g.k + unit - 1) / unit;
  const auto pack = [&](float* packed, int64_t panel, const void* data, DType dtype, int64_t lane_stride,
                        int64_t depth_stride, int64_t lanes, int64_t depth) {
    if (pairs) {
      kernels.pack_pairs(packed, panel, data, lane_stride, depth_stride, lanes, depth);
    } else {
      kernels.pack(packed, panel, data, dtype, lane_stride, depth_stride, lanes, depth);
    }
  };
  const auto micro = pairs ? kernels.micro_pairs : kernels.micro;

  // The part of B that is packed at once, [depth, columns]: of a deep B either fewer columns, or less depth with the sums kept
  // in C. The depth is cut at the same places whatever the threads, for it decides how sums are rounded.
  const int64_t step = even(units, block_depth, 16);
  const int64_t deepest = direct ? std::max(packed_b_floats / round_up(std::min<int64_t>(g.n, 4096), nr) / step, int64_t{1}) * step : units;
  const int64_t part_depth = std::max(std::min(units, deepest), int64_t{1});  // there may be no depth
  const int64_t part_columns = even(g.n, std::max(packed_b_floats / part_depth / nr * nr, nr), nr);
  const int64_t row_panels = parts(g.m, mr);

  // Tasks: blocks of rows and, where these are few, of columns.
  const int64_t row_blocks_least = parts(row_panels, std::max<int64_t>(block_rows / mr, 1));
  const int64_t row_blocks = std::min(row_panels, row_blocks_least == 1 ? 1 : round_up(row_blocks_least, threads));
  const int64_t block_panels = (row_panels + row_blocks - 1) / row_blocks;
  const int64_t column_panels = parts(part_columns, nr);
  int64_t column_blocks = parts(part_columns, direct ? part_columns : block_columns);
  column_blocks = std::min(column_panels, std::max(column_blocks, parts(4 * threads, row_blocks)));

  const int64_t sums_columns = (column_panels + column_blocks - 1) / column_blocks * nr;
  const bool summed_apart = !direct && units > step;
  const int64_t a_floats = round_up(block_panels * mr * std::min(step, units) + pack_slack, 16);
  const int64_t sums_floats = summed_apart ? block_panels * mr * sums_columns : 0;
  const auto b_packed = pool.scratch<float>(part_depth * round_up(std::min(part_columns, g.n), nr));
  const auto own = pool.scratch<float>(threads * (a_floats + sums_floats));

  for (int64_t j0 = 0; j0 < g.n; j0 += part_columns) {
    const int64_t columns = std::min(part_columns, g.n - j0), padded = round_up(columns, nr);
    for (int64_t u0 = 0; u0 == 0 || u0 < units; u0 += part_depth) {
      const int64_t u1 = std::min(u0 + part_depth, units);
      // B from unit u on, of the panel that starts at column j.
      const auto b_at = [&](int64_t u, int64_t j, int64_t count) { return b_packed.data() + (u - u0) * padded + j * count; };

      constexpr int64_t panels_per_task = 8;
      const int64_t groups = parts(columns, panels_per_task * nr), steps = parts(u1 - u0, step);
      pool.parallel_for(groups * steps, [&](int64_t task, int) {
        const int64_t j = task % groups * panels_per_task * nr, u = u0 + task / groups * step;
        const int64_t count = std::min(step, u1 - u);
        pack(b_at(u, j, count), nr, g.b.at(u * unit, j0 + j), g.b.dtype, g.b.column_stride, g.b.row_stride,
             std::min(panels_per_task * nr, columns - j), std::min(g.k - u * unit, count * unit));
      });

      pool.parallel_for(row_blocks * column_blocks, [&](int64_t task, int thread) {
        const int64_t row_block = task / column_blocks, column_block = task % column_blocks;
        const int64_t i0 = row_block * row_panels / row_blocks * mr;
        const int64_t i1 = std::min((row_block + 1) * row_panels / row_blocks * mr, g.m);
        const int64_t first = column_block * column_panels / column_blocks * nr;
        const int64_t end = std::min((column_block + 1) * column_panels / column_blocks * nr, columns);
        if (first >= end || (g.triangle == Triangle::upper && j0 + end <= i0)) return;
        float* a = own.data() + thread * (a_floats + sums_floats);
        float* sums = a + a_floats;

        for (int64_t u = u0; u == u0 || u < u1; u += step) {
          const int64_t count = std::min(step, u1 - u);
          pack(a, mr, g.a.at(i0, u * unit), g.a.dtype, g.a.row_stride, g.a.column_stride, i1 - i0,
               std::min(g.k - u * unit, count * unit));
          for (int64_t j = first; j < end; j += nr) {
            const float* b = b_at(u, j, count);
            for (int64_t i = i0; i < i1; i += mr) {
              GemmTile tile{std::min(mr, i1 - i), std::min(nr, end - j), -mr, g.alpha, nullptr, 0, nullptr, g.dtype, g.c_stride};
              if (g.triangle == Triangle::upper) {
                tile.diagonal = i - (j0 + j);
                if (tile.diagonal >= tile.columns) break;
              }
              char* c = static_cast<char*>(g.c) + (i * g.c_stride + j0 + j) * static_cast<int64_t>(dtype_size(g.dtype));
              float* sum = direct ? reinterpret_cast<float*>(c) : sums + (i - i0) * sums_columns + j - first;
              const int64_t sum_stride = direct ? g.c_stride : sums_columns;
              const bool last = u + step >= units;
              tile.c = c;
              if (!direct && !last) {
                tile.c = sum;
                tile.c_stride = sum_stride;
                tile.dtype = DType::f32;
              }
              if (u > 0 || g.accumulate) {
                tile.addend = sum;
                tile.addend_stride = sum_stride;
              } else if (g.bias != nullptr) {
                tile.addend = g.bias + j0 + j;
              }
              micro(count, a + (i - i0) * count, b, tile);
            }
          }
        }
      });
    }
  }
}

}  // namespace sparsegpt::cpu
