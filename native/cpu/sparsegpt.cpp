#include "cpu/sparsegpt.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/require.h"
#include "cpu/cpu_backend.h"
#include "cpu/gemm.h"
#include "cpu/rows.h"
#include "cpu/scratch_model.h"
#include "cpu/selection.h"
#include "cpu/spans.h"
#include "cpu/sweep.h"

namespace sparsegpt::cpu {

namespace {

// The ranges that are tried for the least squared error: from all of the weights' to half of it.
constexpr int clip_steps = 21;

void require_finite(ThreadPool& pool, Level level, const WeightMatrix& w) {
  std::atomic<int64_t> bad{-1};
  pool.parallel_for(w.rows, [&](int64_t r, int) {
    if (!all_finite[level](w.weight + r * w.columns, w.columns)) bad = r;
  });
  if (bad >= 0) throw Error("NON_FINITE", "the weight has a NaN or infinite entry in row " + std::to_string(bad));
}

// A grid of codes 0 … max: step · (code - zero).
struct Grid {
  float step, zero;
};

// x as a number of the type, and not zero.
float rounded_step(Level level, float x, DType type) {
  const float largest = type == DType::f16 ? 65504.0f : std::numeric_limits<float>::max();
  const float smallest = type == DType::f16 ? 0x1p-24f : type == DType::bf16 ? 0x1p-133f : 0x1p-149f;
  float step = std::clamp(x, smallest, largest);
  if (type == DType::f32) return step;
  uint16_t stored;
  from_float[level](&stored, type, &step, 1);
  to_float[level](&step, &stored, type, 1);
  return step;
}

// The grid that spans `share` of the range of the weights, low <= 0 <= high.
Grid grid_of(Level level, float low, float high, float share, const Rounding& rounding) {
  const float max = static_cast<float>((1 << rounding.bits) - 1);
  if (low == 0 && high == 0) low = -1, high = 1;
  low *= share;
  high *= share;
  if (rounding.symmetric) {
    const float step = rounded_step(level, std::max(-low, high) / max * 2, rounding.type);
    return {step, static_cast<float>(1 << (rounding.bits - 1))};
  }
  float step = (high - low) / max;
  if (std::isinf(step)) step = high / max - low / max;
  step = rounded_step(level, step, rounding.type);
  // A step that was rounded down would put zero beyond the largest code.
  return {step, std::min(std::nearbyint(-low / step), max)};
}

double squared_error(const float* w, int64_t count, const Grid& grid, float max) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float code = std::clamp(std::nearbyint(w[i] / grid.step) + grid.zero, 0.0f, max);
    const double gap = static_cast<double>(w[i]) - grid.step * (code - grid.zero);
    sum += gap * gap;
  }
  return sum;
}

// The grid of a group of weights.
Grid find_grid(Level level, const float* group, int64_t size, const Rounding& rounding) {
  const float max = static_cast<float>((1 << rounding.bits) - 1);
  float low = 0, high = 0;
  for (int64_t i = 0; i < size; ++i) {
    low = std::min(low, group[i]);
    high = std::max(high, group[i]);
  }
  Grid best = grid_of(level, low, high, 1, rounding);
  if (rounding.clip) {
    double least = squared_error(group, size, best, max);
    for (int share = 1; share < clip_steps; ++share) {
      const Grid grid = grid_of(level, low, high, 1 - static_cast<float>(share) / (2 * clip_steps - 2), rounding);
      const double error = squared_error(group, size, grid, max);
      if (error < least) least = error, best = grid;
    }
  }
  return best;
}

void make_grids(ThreadPool& pool, Level level, const WeightMatrix& w, const Rounding& rounding) {
  if (rounding.bits == 0) return;
  const int64_t size = w.columns / rounding.groups;
  pool.parallel_for(w.rows * rounding.groups, [&](int64_t g, int) {
    const Grid grid = find_grid(level, w.weight + g * size, size, rounding);
    rounding.steps[g] = grid.step;
    rounding.zeros[g] = grid.zero;
  });
}

void zero_dead_columns(ThreadPool& pool, const WeightMatrix& w, const uint8_t* dead) {
  std::vector<int64_t> columns;
  for (int64_t j = 0; j < w.columns; ++j)
    if (dead[j]) columns.push_back(j);
  if (columns.empty()) return;
  pool.parallel_for(w.rows, [&](int64_t r, int) {
    for (int64_t j : columns) w.weight[r * w.columns + j] = 0;
  });
}

// The power of two by which the scaled errors (w - q) / U_jj are multiplied before they are squared, so that no square leaves the
// range of a float: 1 unless the weights are extraordinary.
float loss_scale(ThreadPool& pool, const WeightMatrix& w, const float* factor) {
  std::vector<int32_t> largest(static_cast<size_t>(w.rows));  // bits of non-negative floats order as the floats do
  pool.parallel_for(w.rows, [&](int64_t r, int) {
    int32_t most = 0;
    for (int64_t i = r * w.columns; i < (r + 1) * w.columns; ++i) {
      int32_t bits;
      std::memcpy(&bits, w.weight + i, sizeof bits);
      most = std::max(most, bits & 0x7fffffff);
    }
    largest[static_cast<size_t>(r)] = most;
  });
  const int32_t bits = largest.empty() ? 0 : *std::max_element(largest.begin(), largest.end());
  float weight, diagonal = 0;
  std::memcpy(&weight, &bits, sizeof weight);
  for (int64_t j = 0; j < w.columns; ++j) diagonal = std::max(diagonal, factor[j * w.columns + j]);
  const double size = static_cast<double>(weight) * diagonal;
  if (!(size > 0) || (size > 0x1p-40 && size < 0x1p40)) return 1;
  return static_cast<float>(std::ldexp(1.0, std::clamp(-std::ilogb(size), -126, 126)));
}

// Columns that are swept together where the choice of weights does not ask for blocks of a certain size.
constexpr int64_t free_block = 256;

// Columns of the transposed errors are an odd number of tiles apart, as powers of two would share few sets of the caches.
int64_t error_stride(int64_t rows) { return ((rows + lanes - 1) / lanes | 1) * lanes; }

// Rows whose errors take up to 32 MiB, which stays near the caches; but enough of them for the products to be worthwhile.
int64_t rows_of_chunk(int64_t rows, int64_t columns) {
  constexpr int64_t bytes = int64_t{32} << 20, least = 4 * lanes;
  const int64_t most = std::max(bytes / 4 / columns / lanes * lanes - lanes, least);
  const int64_t chunks = std::max<int64_t>((rows + most - 1) / most, 1);
  return (rows + chunks * lanes - 1) / (chunks * lanes) * lanes;
}

// The product by which errors of `depth` columns are carried on to `columns` others, of `rows` rows. Without addresses.
Gemm carried(int64_t columns, int64_t rows, int64_t depth, int64_t factor_stride, int64_t stride) {
  const float* none = nullptr;
  return {columns, rows, depth, operand(none, factor_stride).transposed(), operand(none, stride), nullptr, stride};
}

// SparseGPT on some rows. With the factor R, the errors E = W - Q of the finished columns are all that the others need: the
// weight of column j is, when its turn comes,
//
//     w_j = W_j + (Σ_{k < j} E_k R_kj) / R_jj.
//
// So one buffer holds E left of the current column, and right of it those sums as far as they have got. It is transposed,
// [column][row], as the kernels want it.
class RowSolver {
 public:
  RowSolver(ThreadPool& pool, Level level, const WeightMatrix& w, const float* factor, const Choice& choice,
            const SolverSizes& sizes, const Rounding& rounding, float loss_scale)
      : pool_(pool),
        level_(level),
        w_(w),
        factor_(factor),
        choice_(choice),
        block_columns_(sizes.block_columns),
        rounding_(rounding),
        loss_scale_(loss_scale),
        stride_(sizes.stride),
        thread_scratch_(sizes.tile_scratch),
        error_(pool.scratch<float>(sizes.error)),
        block_factor_(pool.scratch<float>(sizes.block_factor)),
        scores_(pool.scratch<float>(sizes.scores)),
        tile_scratch_(pool.scratch<float>(pool.threads() * sizes.tile_scratch)),
        losses_(static_cast<size_t>(stride_ / lanes)) {
    if (choice.couples_rows()) search_.emplace(pool, level);
  }

  // Returns Σ (loss_scale (w - q) / U_jj)² of the rows [first, first + rows).
  double solve(int64_t first, int64_t rows) {
    first_ = first;
    rows_ = rows;
    tiles_ = (rows + lanes - 1) / lanes;
    std::fill(losses_.begin(), losses_.end(), 0.0);
    pool_.parallel_for(block_columns_,
                       [&](int64_t j, int) { std::fill_n(error_.data() + j * stride_, tiles_ * lanes, 0.0f); });
    solve_blocks(0, divide_up(w_.columns, block_columns_));
    double loss = 0;
    for (double part : losses_) loss += part;
    return loss;
  }

 private:
  // Recursive halves, so that nearly all work is in large products.
  void solve_blocks(int64_t begin, int64_t end) {
    if (end - begin == 1) return solve_block(begin * block_columns_);
    const int64_t middle = (begin + end) / 2;
    solve_blocks(begin, middle);
    carry(begin * block_columns_, middle * block_columns_, std::min(end * block_columns_, w_.columns));
    solve_blocks(middle, end);
  }

  // Adds what the errors of the columns [begin, middle) mean for the columns [middle, end): E R, transposed.
  void carry(int64_t begin, int64_t middle, int64_t end) {
    Gemm product = carried(end - middle, tiles_ * lanes, middle - begin, w_.columns, stride_);
    product.a.data = factor_ + begin * w_.columns + middle;
    product.b.data = error_.data() + begin * stride_;
    product.c = error_.data() + middle * stride_;
    product.accumulate = begin > 0;  // the columns from 0 on come first
    gemm(pool_, level_, product);
  }

  void solve_block(int64_t begin) {
    const int64_t size = std::min(block_columns_, w_.columns - begin);
    for (int64_t k = 0; k < size; ++k)
      std::copy_n(factor_ + (begin + k) * w_.columns + begin + k, size - k, block_factor_.data() + k * size + k);
    float threshold = 0;
    if (choice_.couples_rows()) threshold = choose(begin, size);
    pool_.parallel_for(tiles_, [&](int64_t t, int thread) {
      BlockTile tile = tile_of(t, thread, begin, size);
      tile.threshold = threshold;
      losses_[static_cast<size_t>(t)] += sweep[level_](tile);
    });
  }

  // Of all rows of the block exactly trunc(rows · size · sparsity) go; of equal scores the first in row order. Returns the
  // score up to which they go.
  float choose(int64_t begin, int64_t size) {
    const auto count = static_cast<int64_t>(static_cast<double>(rows_ * size) * choice_.sparsity);
    pool_.parallel_for(tiles_, [&](int64_t t, int thread) {
      score[level_](tile_of(t, thread, begin, size), scores_of(t, size));
      if (count > 0) search_->count(thread, scores_of(t, size), size * lanes);
    });
    if (count <= 0) return -1;
    const auto found = search_->find(
        tiles_, count - 1, [&](int64_t t) { return std::pair<const float*, int64_t>(scores_of(t, size), size * lanes); });
    int64_t surplus = found.smaller + found.equal - count;
    for (int64_t i = rows_ * size - 1; i >= 0 && surplus > 0; --i) {
      float& candidate = scores_of(i / size / lanes, size)[i % size * lanes + i / size % lanes];
      if (candidate != found.score) continue;
      candidate = INFINITY;
      --surplus;
    }
    return found.score;
  }

  BlockTile tile_of(int64_t t, int thread, int64_t begin, int64_t size) {
    const int64_t row = first_ + t * lanes, offset = row * w_.columns + begin;
    BlockTile tile{};
    tile.rows = std::min(lanes, first_ + rows_ - row);
    tile.columns = size;
    tile.factor = block_factor_.data();
    tile.weight = w_.weight + offset;
    tile.mask = w_.mask + offset;
    tile.stride = w_.columns;
    tile.error = error_.data() + begin * stride_ + t * lanes;
    tile.error_stride = stride_;
    if (choice_.given != nullptr) {
      tile.given = choice_.given + offset;
    } else if (choice_.couples_rows()) {
      tile.scores = scores_of(t, size);
    } else {
      tile.n = choice_.n;
      tile.m = choice_.m;
    }
    if (rounding_.bits > 0) {
      tile.steps = rounding_.steps + row * rounding_.groups;
      tile.zeros = rounding_.zeros + row * rounding_.groups;
      tile.groups = rounding_.groups;
      tile.group_size = w_.columns / rounding_.groups;
      tile.first_column = begin;
      tile.largest_code = static_cast<float>((1 << rounding_.bits) - 1);
    }
    tile.loss_scale = loss_scale_;
    tile.scratch = tile_scratch_.data() + thread * thread_scratch_;
    return tile;
  }

  float* scores_of(int64_t t, int64_t size) { return scores_.data() + t * lanes * size; }

  ThreadPool& pool_;
  const Level level_;
  const WeightMatrix& w_;
  const float* factor_;
  const Choice& choice_;
  const int64_t block_columns_;
  const Rounding& rounding_;
  const float loss_scale_;

  const int64_t stride_, thread_scratch_;
  Scratch<float> error_;  // [columns][stride]
  Scratch<float> block_factor_;  // R_BB
  Scratch<float> scores_;  // [tiles][B][lanes]
  Scratch<float> tile_scratch_;  // of each thread
  std::vector<double> losses_;  // of each tile
  int64_t first_ = 0, rows_ = 0, tiles_ = 0;
  std::optional<RankSearch> search_;  // by sparsity
};

}  // namespace

SolverSizes::SolverSizes(int64_t rows, int64_t columns, bool couples_rows, int m, int64_t block_size) {
  block_columns = block_size;
  chunk_rows = rows;
  if (!couples_rows) {
    // The result does not depend on the block size, and rows are independent.
    block_columns = m > 0 ? std::max<int64_t>(free_block / m, 1) * m : free_block;
    chunk_rows = rows_of_chunk(rows, columns);
  }
  block_columns = std::min(block_columns, columns);
  stride = error_stride(chunk_rows);
  error = columns * stride;
  block_factor = block_columns * block_columns;
  scores = couples_rows ? stride * block_columns : 0;
  tile_scratch = cpu::tile_scratch(block_columns);
}

double prune_sparsegpt(ThreadPool& pool, Level level, const WeightMatrix& w, const float* factor, const uint8_t* dead,
                       const Choice& choice, int64_t block_size, const Rounding& rounding) {
  require_finite(pool, level, w);
  const int m = choice.given == nullptr ? choice.m : 0;
  const SolverSizes sizes(w.rows, w.columns, choice.couples_rows(), m, block_size);
  make_grids(pool, level, w, rounding);
  zero_dead_columns(pool, w, dead);
  const float scale = loss_scale(pool, w, factor);
  RowSolver solver(pool, level, w, factor, choice, sizes, rounding, scale);
  double loss = 0;
  for (int64_t first = 0; first < w.rows; first += sizes.chunk_rows)
    loss += solver.solve(first, std::min(sizes.chunk_rows, w.rows - first));
  // A loss beyond what a double holds comes of weights that are not finite.
  if (!std::isfinite(loss)) require_finite(pool, level, w);
  return 0.5 * loss / scale / scale;
}

void CpuBackend::compute(const PruneSparsegpt& o) {
  const WeightMatrix matrix{o.weight.data<float>(), o.mask.data<uint8_t>(), o.weight.rows, o.weight.columns};
  const Choice choice{o.sparsity, o.n, o.m, o.given ? o.given.data<uint8_t>() : nullptr};
  const int64_t grids = o.bits > 0 ? o.weight.rows * o.groups() : 0;
  const bool apart = o.steps && o.steps.dtype != DType::f32;
  const auto steps = pool_.scratch<float>(!o.steps || apart ? grids : 0), zeros = pool_.scratch<float>(o.zeros ? 0 : grids);
  const Rounding rounding{o.bits,
                          o.groups(),
                          o.symmetric,
                          o.clip,
                          o.steps ? o.steps.dtype : DType::f32,
                          steps.size() > 0 || !o.steps ? steps.data() : o.steps.data<float>(),
                          o.zeros ? o.zeros.data<float>() : zeros.data()};
  *o.loss.data<double>() =
      prune_sparsegpt(pool_, level_, matrix, o.factor.data<float>(), o.dead.data<uint8_t>(), choice, o.block_size, rounding);
  if (apart) from_float[level_](o.steps.bytes(), o.steps.dtype, steps.data(), grids);
}

void CpuBackend::compute(const FindGrids& o) {
  const int64_t groups = o.steps.columns, size = o.x.columns / groups;
  const Rounding rounding{o.bits, groups, o.symmetric, o.clip, o.steps.dtype, nullptr, nullptr};
  for_rows(pool_, o.x.rows, o.x.columns, [&](int64_t i, std::vector<float>& buffer) {
    buffer.resize(static_cast<size_t>(o.x.columns + groups));
    const float* x = as_floats(level_, o.x, i, 0, o.x.columns, buffer.data());
    float *steps = buffer.data() + o.x.columns, *zeros = o.zeros.data<float>() + i * groups;
    for (int64_t g = 0; g < groups; ++g) {
      const Grid grid = find_grid(level_, x + g * size, size, rounding);
      steps[g] = grid.step;
      zeros[g] = grid.zero;
    }
    from_float[level_](row_of(o.steps, i), o.steps.dtype, steps, groups);
  });
}

size_t CpuScratch::bytes(const PruneSparsegpt& o) const {
  const int64_t columns = o.weight.columns;
  const SolverSizes sizes(o.weight.rows, columns, o.couples_rows(), o.given ? 0 : o.m, o.block_size);
  const int64_t grids = o.bits > 0 ? o.weight.rows * o.groups() : 0;
  size_t products = 0;
  for (int64_t blocks = divide_up(columns, sizes.block_columns); blocks > 1; blocks -= blocks / 2) {
    const int64_t begin = blocks / 2 * sizes.block_columns, end = std::min(blocks * sizes.block_columns, columns);
    const int64_t rows = divide_up(sizes.chunk_rows, lanes) * lanes;
    products = std::max(products, gemm_scratch(level_, threads_, carried(end - begin, rows, begin, columns, sizes.stride)));
  }
  return Scratch<float>::bytes(sizes.error) + Scratch<float>::bytes(sizes.block_factor) +
         Scratch<float>::bytes(sizes.scores) + Scratch<float>::bytes(threads_ * sizes.tile_scratch) +
         (!o.steps || o.steps.dtype != DType::f32 ? Scratch<float>::bytes(grids) : 0) +
         (o.zeros ? 0 : Scratch<float>::bytes(grids)) + (o.couples_rows() ? RankSearch::scratch(threads_) : 0) + products;
}

}  // namespace sparsegpt::cpu
