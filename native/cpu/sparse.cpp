#include "cpu/sparse.h"

#include <algorithm>
#include <atomic>

namespace sparsegpt::cpu {

namespace {

// Weights of B that are held as entries at once, in 12 MiB; more where one group of columns has more.
constexpr int64_t weights_at_once = int64_t{2} << 20;
// The sums of so many columns, 0.4 MB with AVX-512, stay in L2 beside a panel of A.
constexpr int64_t columns_at_once = 12 * sparse_columns;
// So deep a panel of A, 1 MB with AVX-512, is packed at once.
constexpr int64_t depth_at_once = 2048;
constexpr int64_t tasks_per_thread = 4;
// Entries for each step of the depth of a column, from which on a dense product is faster: it has 1, or 1/2 for pairs.
constexpr double most_entries = 0.7, most_pairs = 0.3;

// How columns of B are kept as entries.
struct EntrySizes {
  EntrySizes(bool pairs, int64_t depth, int64_t columns)
      : step(pairs ? sparse_pairs_depth : sparse_depth),
        blocks(divide_up(depth, step)),
        groups(divide_up(columns, sparse_columns)),
        capacity(step * sparse_columns + SparseChunk::surplus) {}

  int64_t entries() const { return blocks * groups * capacity; }
  int64_t starts() const { return blocks * groups * (sparse_columns + 1); }
  int64_t dense() const { return sparse_columns * step; }
  size_t bytes(int threads) const {
    return Scratch<float>::bytes(entries()) + Scratch<uint16_t>::bytes(entries()) + Scratch<uint32_t>::bytes(starts()) +
           Scratch<float>::bytes(threads * dense());
  }

  int64_t step;      // depth of a block
  int64_t blocks;
  int64_t groups;    // of columns, at most
  int64_t capacity;  // entries of a chunk
};

// Columns of B as entries, in chunks [depth block][column group].
class SparseColumns {
 public:
  SparseColumns(ThreadPool& pool, Level level, bool pairs, int64_t depth, int64_t columns)
      : pool_(pool),
        level_(level),
        pairs_(pairs),
        depth_(depth),
        sizes_(pairs, depth, columns),
        values_(pool.scratch<float>(sizes_.entries())),
        slots_(pool.scratch<uint16_t>(sizes_.entries())),
        starts_(pool.scratch<uint32_t>(sizes_.starts())),
        dense_(pool.scratch<float>(pool.threads() * sizes_.dense())) {}

  int64_t step() const { return sizes_.step; }
  int64_t blocks() const { return sizes_.blocks; }
  int64_t groups() const { return groups_; }
  SparseChunk chunk(int64_t block, int64_t group) const {
    const int64_t i = block * sizes_.groups + group;
    return {values_.data() + i * sizes_.capacity, slots_.data() + i * sizes_.capacity,
            starts_.data() + i * (sparse_columns + 1)};
  }

  // Returns the number of entries.
  int64_t fill(const Operand& b, int64_t columns) {
    groups_ = divide_up(columns, sparse_columns);
    std::atomic<int64_t> entries{0};
    pool_.parallel_for(sizes_.blocks * groups_, [&](int64_t task, int thread) {
      const int64_t block = task / groups_, group = task % groups_, first = group * sparse_columns;
      const int64_t count = std::min(sparse_columns, columns - first), k = block * step();
      const int64_t depth = std::min(step(), depth_ - k);
      float* dense = dense_.data() + thread * sizes_.dense();
      // A panel whose lanes run along the depth is a row for every column.
      pack_panels(level_, false, dense, step(), b, k, depth, first, count);
      if (depth < step())
        for (int64_t j = 0; j < count; ++j) std::fill(dense + j * step() + depth, dense + (j + 1) * step(), 0.0f);
      const SparseChunk out = chunk(block, group);
      (pairs_ ? compress_pairs : compress)[level_](out, dense, count);
      entries += out.starts[count];
    });
    return entries;
  }

 private:
  ThreadPool& pool_;
  const Level level_;
  const bool pairs_;
  const int64_t depth_;
  const EntrySizes sizes_;
  int64_t groups_ = 0;
  Scratch<float> values_;
  Scratch<uint16_t> slots_;
  Scratch<uint32_t> starts_;
  Scratch<float> dense_;  // of each thread
};

// How a product is cut.
struct Plan {
  Plan(Level level, const Gemm& g)
      : rows(sparse_panel_rows[level]()),
        possible(g.triangle == Triangle::full && g.m >= rows && g.n >= sparse_columns && g.k >= sparse_depth) {
    if (!possible) return;
    pairs = multiplies_pairs(level, g);
    part = std::clamp(weights_at_once / g.k / sparse_columns * sparse_columns, sparse_columns, g.n);
    const EntrySizes sizes(pairs, g.k, part);
    // A panel of A is packed once for all columns, where it is not too deep for that.
    packed_depth = std::min(depth_at_once, sizes.blocks * sizes.step);
    packed_floats = packed_depth / (pairs ? 2 : 1) * rows;
    formed_floats = pairs ? sizes.step * 3 / 2 * rows : 0;
    const int64_t sums_floats = std::min(columns_at_once, divide_up(part, sparse_columns) * sparse_columns) * rows;
    own_floats = packed_floats + formed_floats + sums_floats;
  }

  int64_t rows;  // of a panel of A
  bool possible;
  bool pairs = false;
  int64_t part = 0;  // columns of B that are held at once
  int64_t packed_depth = 0, packed_floats = 0, formed_floats = 0;
  int64_t own_floats = 0;  // of each thread: these and the sums
};

}  // namespace

size_t sparse_scratch(Level level, int threads, const Gemm& g) {
  const Plan plan(level, g);
  if (!plan.possible) return 0;
  return EntrySizes(plan.pairs, g.k, plan.part).bytes(threads) + Scratch<float>::bytes(threads * plan.own_floats);
}

bool multiply_sparse(ThreadPool& pool, Level level, const Gemm& g) {
  const Plan plan(level, g);
  if (!plan.possible) return false;
  const int64_t rows = plan.rows, threads = pool.threads(), part = plan.part;
  const bool pairs = plan.pairs;

  {
    SparseColumns some(pool, level, pairs, g.k, sparse_columns);
    Operand b = g.b;
    b.column_stride *= g.n / sparse_columns;
    const auto entries = static_cast<double>(some.fill(b, sparse_columns));
    if (entries > (pairs ? most_pairs : most_entries) * static_cast<double>(g.k * sparse_columns)) return false;
  }
  SparseColumns columns(pool, level, pairs, g.k, part);
  const int64_t unit = pairs ? 2 : 1, packed_depth = plan.packed_depth;
  const auto own = pool.scratch<float>(threads * plan.own_floats);
  const int64_t panels = divide_up(g.m, rows);

  for (int64_t first = 0; first < g.n; first += part) {
    const int64_t end = std::min(first + part, g.n);
    Operand b = g.b;
    b.data = g.b.at(0, first);
    columns.fill(b, end - first);
    const int64_t groups = columns.groups();
    const int64_t tasks = std::min(groups, divide_up(tasks_per_thread * threads, panels));  // of a panel

    pool.parallel_for(panels * tasks, [&](int64_t task, int thread) {
      const int64_t i = task / tasks * rows, count = std::min(rows, g.m - i);
      const int64_t last_group = cut(groups, task % tasks + 1, tasks);
      float* packed = own.data() + thread * plan.own_floats;
      float* formed = packed + plan.packed_floats;
      float* sums = formed + plan.formed_floats;
      int64_t packed_from = -1;

      for (int64_t g0 = cut(groups, task % tasks, tasks), g1; g0 < last_group; g0 = g1) {
        g1 = std::min(g0 + columns_at_once / sparse_columns, last_group);
        std::fill_n(sums, (g1 - g0) * sparse_columns * rows, 0.0f);
        for (int64_t block = 0; block < columns.blocks(); ++block) {
          const int64_t k = block * columns.step(), from = k / packed_depth * packed_depth;
          if (packed_from != from) {
            pack_panels(level, pairs, packed, rows, g.a, i, count, from, std::min(packed_depth, g.k - from));
            packed_from = from;
          }
          const float* panel = packed + (k - from) / unit * rows;
          if (pairs) {
            form_pairs[level](formed, panel, divide_up(std::min(columns.step(), g.k - k), 2));
            panel = formed;
          }
          for (int64_t group = g0; group < g1; ++group) {
            const int64_t width = std::min(sparse_columns, end - first - group * sparse_columns);
            (pairs ? multiply_pair_entries : multiply_entries)[level](columns.chunk(block, group), width, panel,
                                                                      sums + (group - g0) * sparse_columns * rows);
          }
        }
        const int64_t j = first + g0 * sparse_columns;
        GemmTile tile{};
        tile.rows = count;
        tile.columns = std::min(first + g1 * sparse_columns, end) - j;
        tile.alpha = g.alpha;
        tile.c = static_cast<char*>(g.c) + (i * g.c_stride + j) * static_cast<int64_t>(dtype_size(g.dtype));
        tile.c_stride = g.c_stride;
        tile.dtype = g.dtype;
        if (g.accumulate) {
          tile.addend = static_cast<const float*>(tile.c);
          tile.addend_stride = g.c_stride;
        } else if (g.bias != nullptr) {
          tile.addend = g.bias + j;
        }
        store_sums[level](sums, tile);
      }
    });
  }
  return true;
}

}  // namespace sparsegpt::cpu
