#include "cpu/gemm.h"

#include <algorithm>

#include "core/require.h"
#include "cpu/few_rows.h"
#include "cpu/sparse.h"

namespace sparsegpt::cpu {

namespace {

// BLIS's cache blocks. Depths count units, the 32 bits of a panel: a float32 element or a pair of bfloat16 elements.
//
// An A block [block_rows, block_depth] of 0.3 MB stays in L2, with the B panel [block_depth, nr] that it meets. B is packed for
// all threads, as much at once as L3 holds. Products of a depth beyond one block are summed in C itself or, when C is not
// float32, in an array of the thread's own, [block_rows, block_columns] of 0.6 MB. So the scratch memory of a product is at
// most 8 MB and 1 MB for each thread (more only where a depth beyond 65536 units meets a C that is not float32).
constexpr int64_t block_rows = 144, block_depth = 512, block_columns = 1024;
constexpr int64_t packed_b_floats = int64_t{2} << 20;
// Tile registers multiply faster than L3 gives panels of B: more rows meet each. Panels are as deep as L1 holds.
constexpr int64_t tile_block_rows = 256, tile_block_depth = 384;
// Smaller blocks of rows where there would be too few for the threads to share evenly.
constexpr int64_t block_rows_least = 48, blocks_per_thread = 4;

int64_t round_up(int64_t length, int64_t multiple) { return divide_up(length, multiple) * multiple; }

// The length of equal parts of about `most`, a multiple; at least one multiple.
int64_t equal_parts(int64_t length, int64_t most, int64_t multiple) {
  const int64_t parts = std::max<int64_t>(divide_up(length, most), 1);
  return std::max(round_up(divide_up(length, parts), multiple), multiple);
}

// How a product is cut.
struct Plan {
  Plan(Level level, int threads, const Gemm& g)
      : direct(g.dtype == DType::f32),
        pairs(multiplies_pairs(level, g)),
        tiles(multiplies_tiles(level, g)),
        mr(tiles ? tile_side : register_tile[level]().rows),
        nr(tiles ? tile_side : register_tile[level]().columns),
        unit(pairs ? 2 : 1),
        units(round_up(divide_up(g.k, unit), tiles ? tile_units : 1)) {
    // The depth of a block decides how sums are rounded: the same for any number of threads.
    step = equal_parts(units, tiles ? tile_block_depth : block_depth, 16);
    // B at once: if it is too deep, less depth where the sums may stay in C, else fewer columns.
    const int64_t wide = round_up(std::min<int64_t>(g.n, 4096), nr);
    part_depth = direct ? std::max<int64_t>(packed_b_floats / wide / step, 1) * step : std::max(units, step);
    const int64_t packed_depth = std::max<int64_t>(std::min(part_depth, units), 1);
    part_columns = equal_parts(g.n, std::max(packed_b_floats / packed_depth / nr * nr, nr), nr);

    // The tasks: blocks of rows, of whole panels each, and of columns where these are too many or those too few.
    row_panels = divide_up(g.m, mr);
    const int64_t block_panels = std::clamp(row_panels / (blocks_per_thread * threads), block_rows_least / mr,
                                            (tiles ? tile_block_rows : block_rows) / mr);
    row_blocks = row_panels <= block_panels ? 1 : round_up(divide_up(row_panels, block_panels), threads);
    column_blocks = std::max(divide_up(blocks_per_thread * threads, row_blocks),
                             direct ? int64_t{1} : divide_up(part_columns, block_columns));

    const int64_t rows_most = divide_up(row_panels, row_blocks) * mr;
    columns_most = divide_up(part_columns / nr, column_blocks) * nr;
    a_floats = rows_most * std::min(step, units);
    own_floats = a_floats + (direct || units <= step ? 0 : rows_most * columns_most);
    b_floats = packed_depth * part_columns;
  }

  bool direct;  // sums stay in C
  bool pairs, tiles;
  int64_t mr, nr, unit, units;
  int64_t step, part_depth, part_columns;
  int64_t row_panels, row_blocks, column_blocks, columns_most;
  int64_t b_floats;  // B, packed
  int64_t a_floats, own_floats;  // of each thread: A, packed, and with sums that may not stay in C
};

// Tile registers take zeros faster than entries are found between them.
bool skips_zeros(Level level, const Gemm& g) { return g.sparse_b && !multiplies_tiles(level, g); }

}  // namespace

size_t gemm_scratch(Level level, int threads, const Gemm& g) {
  if (g.m == 0 || g.n == 0) return 0;
  if (has_few_rows(g)) return few_rows_scratch(level, g);
  const Plan plan(level, threads, g);
  const size_t dense = Scratch<float>::bytes(plan.b_floats) + Scratch<float>::bytes(threads * plan.own_floats);
  return skips_zeros(level, g) ? std::max(dense, sparse_scratch(level, threads, g)) : dense;
}

void gemm(ThreadPool& pool, Level level, const Gemm& g) {
  require(!g.accumulate || (g.dtype == DType::f32 && g.bias == nullptr), "a product is added to float32, without a bias");
  if (g.m == 0 || g.n == 0) return;
  if (has_few_rows(g)) return multiply_few_rows(pool, level, g);
  if (skips_zeros(level, g) && multiply_sparse(pool, level, g)) return;
  const Plan plan(level, pool.threads(), g);
  const bool direct = plan.direct, tiles = plan.tiles;
  const int64_t mr = plan.mr, nr = plan.nr, unit = plan.unit, units = plan.units, step = plan.step;
  const int64_t part_depth = plan.part_depth, part_columns = plan.part_columns, columns_most = plan.columns_most;
  const int64_t row_panels = plan.row_panels, row_blocks = plan.row_blocks, column_blocks = plan.column_blocks;
  const auto multiply = tiles ? micro_tiles[level] : plan.pairs ? micro_pairs[level] : micro[level];
  // Packs lanes (rows of A, columns of B) and `count` units from unit u on.
  const auto pack = [&](float* packed, int64_t panel, const Operand& lanes, int64_t first, int64_t end, int64_t u,
                        int64_t count, const Kernel<PackTiles>& pack_tiles) {
    const int64_t step = u * unit, depth = std::min(count * unit, g.k - step);
    if (tiles)
      return pack_tiles[level](packed, lanes.at(first, step), lanes.row_stride, lanes.column_stride, end - first, depth);
    pack_panels(level, plan.pairs, packed, panel, lanes, first, end - first, step, depth);
  };
  const auto b_packed = pool.scratch<float>(plan.b_floats);
  const auto own = pool.scratch<float>(pool.threads() * plan.own_floats);

  for (int64_t j0 = 0; j0 < g.n; j0 += part_columns) {
    const int64_t j1 = std::min(j0 + part_columns, g.n), column_panels = divide_up(j1 - j0, nr);
    for (int64_t u0 = 0; u0 == 0 || u0 < units; u0 += part_depth) {  // no depth: once
      const int64_t u1 = std::min(u0 + part_depth, units);
      // The panel of column j in the block of `count` units from u on.
      const auto b_panel = [&](int64_t u, int64_t count, int64_t j) {
        return b_packed.data() + (u - u0) * column_panels * nr + (j - j0) * count;
      };

      constexpr int64_t panels_per_task = 8;
      const int64_t groups = divide_up(column_panels, panels_per_task);
      pool.parallel_for(groups * divide_up(u1 - u0, step), [&](int64_t task, int) {
        const int64_t j = j0 + task % groups * panels_per_task * nr, u = u0 + task / groups * step;
        const int64_t count = std::min(step, u1 - u);
        pack(b_panel(u, count, j), nr, g.b.transposed(), j, std::min(j + panels_per_task * nr, j1), u, count,
             pack_tile_columns);
      });

      pool.parallel_for(row_blocks * column_blocks, [&](int64_t task, int thread) {
        const int64_t row_block = task / column_blocks, column_block = task % column_blocks;
        const int64_t i0 = cut(row_panels, row_block, row_blocks) * mr;
        const int64_t i1 = std::min(cut(row_panels, row_block + 1, row_blocks) * mr, g.m);
        const int64_t first = j0 + cut(column_panels, column_block, column_blocks) * nr;
        const int64_t end = std::min(j0 + cut(column_panels, column_block + 1, column_blocks) * nr, j1);
        if (i0 >= i1 || first >= end || (g.triangle == Triangle::upper && end <= i0)) return;
        float* a = own.data() + thread * plan.own_floats;
        float* sums = a + plan.a_floats;

        for (int64_t u = u0; u == u0 || u < u1; u += step) {
          const int64_t count = std::min(step, u1 - u);
          const bool last = u + step >= units;
          pack(a, mr, g.a, i0, i1, u, count, pack_tile_rows);
          if (tiles) open_tiles[level]();
          for (int64_t j = first; j < end; j += nr) {
            const float* b = b_panel(u, count, j);
            for (int64_t i = i0; i < i1; i += mr) {
              const int64_t at = i * g.c_stride + j, diagonal = g.triangle == Triangle::upper ? i - j : -mr;
              if (diagonal >= nr) break;
              GemmTile tile{};
              tile.rows = std::min(mr, i1 - i);
              tile.columns = std::min(nr, end - j);
              tile.diagonal = diagonal;
              tile.alpha = g.alpha;
              float* sum = direct ? static_cast<float*>(g.c) + at : sums + (i - i0) * columns_most + j - first;
              const int64_t sum_stride = direct ? g.c_stride : columns_most;
              if (direct || !last) {
                tile.c = sum;
                tile.c_stride = sum_stride;
                tile.dtype = DType::f32;
              } else {
                tile.c = static_cast<uint16_t*>(g.c) + at;
                tile.c_stride = g.c_stride;
                tile.dtype = g.dtype;
              }
              if (u > 0 || g.accumulate) {
                tile.addend = sum;
                tile.addend_stride = sum_stride;
              } else if (g.bias != nullptr) {
                tile.addend = g.bias + j;
              }
              multiply(count, a + (i - i0) * count, b, tile);
            }
          }
          if (tiles) close_tiles[level]();
        }
      });
    }
  }
}

}  // namespace sparsegpt::cpu
