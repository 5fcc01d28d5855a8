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

// Columns of B as entries, in chunks [depth block][column group].
class SparseColumns {
 public:
  SparseColumns(ThreadPool& pool, const Kernels& kernels, bool pairs, int64_t depth, int64_t columns)
      : pool_(pool),
        kernels_(kernels),
        pairs_(pairs),
        depth_(depth),
        step_(pairs ? sparse_pairs_depth : sparse_depth),
        blocks_(divide_up(depth, step_)),
        most_groups_(divide_up(columns, sparse_columns)),
        capacity_(step_ * sparse_columns + SparseChunk::surplus),
        values_(pool.scratch<float>(blocks_ * most_groups_ * capacity_)),
        slots_(pool.scratch<uint16_t>(blocks_ * most_groups_ * capacity_)),
        starts_(pool.scratch<uint32_t>(blocks_ * most_groups_ * (sparse_columns + 1))),
        dense_(pool.scratch<float>(pool.threads() * sparse_columns * step_)) {}

  int64_t step() const { return step_; }  // depth of a block
  int64_t blocks() const { return blocks_; }
  int64_t groups() const { return groups_; }
  SparseChunk chunk(int64_t block, int64_t group) const {
    const int64_t i = block * most_groups_ + group;
    return {values_.data() + i * capacity_, slots_.data() + i * capacity_, starts_.data() + i * (sparse_columns + 1)};
  }

  // Returns the number of entries.
  int64_t fill(const Operand& b, int64_t columns) {
    groups_ = divide_up(columns, sparse_columns);
    std::atomic<int64_t> entries{0};
    pool_.parallel_for(blocks_ * groups_, [&](int64_t task, int thread) {
      const int64_t block = task / groups_, group = task % groups_, first = group * sparse_columns;
      const int64_t count = std::min(sparse_columns, columns - first), k = block * step_;
      const int64_t depth = std::min(step_, depth_ - k);
      float* dense = dense_.data() + thread * sparse_columns * step_;
      // A panel whose lanes run along the depth is a row for every column.
      pack_panels(kernels_, false, dense, step_, b, k, depth, first, count);
      if (depth < step_)
        for (int64_t j = 0; j < count; ++j) std::fill(dense + j * step_ + depth, dense + (j + 1) * step_, 0.0f);
      const SparseChunk out = chunk(block, group);
      (pairs_ ? kernels_.compress_pairs : kernels_.compress)(out, dense, count);
      entries += out.starts[count];
    });
    return entries;
  }

 private:
  ThreadPool& pool_;
  const Kernels& kernels_;
  const bool pairs_;
  const int64_t depth_, step_, blocks_, most_groups_, capacity_;
  int64_t groups_ = 0;
  Scratch<float> values_;
  Scratch<uint16_t> slots_;
  Scratch<uint32_t> starts_;
  Scratch<float> dense_;  // of each thread
};

}  // namespace

bool multiply_sparse(ThreadPool& pool, const Kernels& kernels, const Gemm& g) {
  const int64_t rows = kernels.sparse_rows, threads = pool.threads();
  if (g.triangle != Triangle::full || g.m < rows || g.n < sparse_columns || g.k < sparse_depth) return false;
  const bool pairs = multiplies_pairs(kernels, g);

  {
    SparseColumns some(pool, kernels, pairs, g.k, sparse_columns);
    Operand b = g.b;
    b.column_stride *= g.n / sparse_columns;
    const auto entries = static_cast<double>(some.fill(b, sparse_columns));
    if (entries > (pairs ? most_pairs : most_entries) * static_cast<double>(g.k * sparse_columns)) return false;
  }
  const int64_t part = std::clamp(weights_at_once / g.k / sparse_columns * sparse_columns, sparse_columns, g.n);
  SparseColumns columns(pool, kernels, pairs, g.k, part);

  // A panel of A is packed once for all columns, where it is not too deep for that.
  const int64_t unit = pairs ? 2 : 1;
  const int64_t packed_depth = std::min(depth_at_once, columns.blocks() * columns.step());
  const int64_t packed_floats = packed_depth / unit * rows;
  const int64_t formed_floats = pairs ? columns.step() * 3 / 2 * rows : 0;
  const int64_t sums_floats = std::min(columns_at_once, divide_up(part, sparse_columns) * sparse_columns) * rows;
  const int64_t own_floats = packed_floats + formed_floats + sums_floats;
  const auto own = pool.scratch<float>(threads * own_floats);
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
      float* packed = own.data() + thread * own_floats;
      float* formed = packed + packed_floats;
      float* sums = formed + formed_floats;
      int64_t packed_from = -1;

      for (int64_t g0 = cut(groups, task % tasks, tasks), g1; g0 < last_group; g0 = g1) {
        g1 = std::min(g0 + columns_at_once / sparse_columns, last_group);
        std::fill_n(sums, (g1 - g0) * sparse_columns * rows, 0.0f);
        for (int64_t block = 0; block < columns.blocks(); ++block) {
          const int64_t k = block * columns.step(), from = k / packed_depth * packed_depth;
          if (packed_from != from) {
            pack_panels(kernels, pairs, packed, rows, g.a, i, count, from, std::min(packed_depth, g.k - from));
            packed_from = from;
          }
          const float* panel = packed + (k - from) / unit * rows;
          if (pairs) {
            kernels.form_pairs(formed, panel, divide_up(std::min(columns.step(), g.k - k), 2));
            panel = formed;
          }
          for (int64_t group = g0; group < g1; ++group) {
            const int64_t width = std::min(sparse_columns, end - first - group * sparse_columns);
            (pairs ? kernels.multiply_sparse_pairs : kernels.multiply_sparse)(columns.chunk(block, group), width, panel,
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
        kernels.store_sums(sums, tile);
      }
    });
  }
  return true;
}

}  // namespace sparsegpt::cpu
