#include "cpu/prune.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/require.h"
#include "cpu/gemm.h"
#include "cpu/selection.h"

namespace sparsegpt::cpu {

namespace {

void require_finite(ThreadPool& pool, const Kernels& kernels, const WeightMatrix& w) {
  std::atomic<int64_t> bad{-1};
  pool.parallel_for(w.rows, [&](int64_t r, int) {
    if (!kernels.all_finite(w.weight + r * w.columns, w.columns)) bad = r;
  });
  if (bad >= 0) throw Error("NON_FINITE", "the weight has a NaN or infinite entry in row " + std::to_string(bad));
}

void require_groups(const WeightMatrix& w, const Choice& choice) {
  if (choice.mask == nullptr && choice.m > 0) sparsegpt::require_groups(w.columns, choice.n, choice.m);
}

// Each row's asymmetric grid from its smallest and largest weight, with zero on the grid.
struct Grid {
  std::vector<float> scale, zero;
  float max = 0;

  Grid(ThreadPool& pool, const WeightMatrix& w, int bits) {
    if (bits == 0) return;
    max = static_cast<float>((1 << bits) - 1);
    scale.resize(static_cast<size_t>(w.rows));
    zero.resize(static_cast<size_t>(w.rows));
    pool.parallel_for(w.rows, [&](int64_t r, int) {
      float low = 0, high = 0;
      for (int64_t i = r * w.columns; i < (r + 1) * w.columns; ++i) {
        low = std::min(low, w.weight[i]);
        high = std::max(high, w.weight[i]);
      }
      if (low == 0 && high == 0) low = -1, high = 1;
      const float step = (high - low) / max;
      scale[static_cast<size_t>(r)] = step;
      zero[static_cast<size_t>(r)] = std::nearbyint(-low / step);
    });
  }
};

void zero_dead_columns(ThreadPool& pool, const WeightMatrix& w, const uint8_t* dead) {
  std::vector<int64_t> columns;
  for (int64_t j = 0; j < w.columns; ++j)
    if (dead[j]) columns.push_back(j);
  if (columns.empty()) return;
  pool.parallel_for(w.rows, [&](int64_t r, int) {
    for (int64_t j : columns) w.weight[r * w.columns + j] = 0;
  });
}

// Columns that are swept together where the choice of weights does not ask for blocks of a certain size.
constexpr int64_t free_block = 128;

// Columns of the transposed errors are an odd number of tiles apart, as powers of two would share few sets of the caches.
int64_t error_stride(int64_t rows) { return ((rows + lanes - 1) / lanes | 1) * lanes; }

// Rows whose errors take up to 32 MiB, which stays near the caches; but enough of them for the products to be worthwhile.
int64_t chunk_rows(int64_t rows, int64_t columns) {
  constexpr int64_t bytes = int64_t{32} << 20, least = 4 * lanes;
  const int64_t most = std::max(bytes / 4 / columns / lanes * lanes - lanes, least);
  const int64_t chunks = std::max<int64_t>((rows + most - 1) / most, 1);
  return (rows + chunks * lanes - 1) / (chunks * lanes) * lanes;
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
  // rows: as many as solve() is called with at most.
  RowSolver(ThreadPool& pool, const Kernels& kernels, const WeightMatrix& w, const float* factor, const Choice& choice,
            int64_t rows, int64_t block_columns, const Grid& grid)
      : pool_(pool),
        kernels_(kernels),
        w_(w),
        factor_(factor),
        choice_(choice),
        block_columns_(block_columns),
        grid_(grid),
        stride_(error_stride(rows)),
        error_(pool.scratch<float>(w.columns * stride_)),
        block_factor_(pool.scratch<float>(block_columns * block_columns)),
        scores_(pool.scratch<float>(choice.couples_rows() ? stride_ * block_columns : 0)),
        tile_scratch_(pool.scratch<float>(pool.threads() * tile_scratch(block_columns))),
        losses_(static_cast<size_t>(stride_ / lanes)),
        search_(pool.threads(), kernels) {}

  // Returns Σ (w - q)² / U_jj² of the rows [first, first + rows).
  double solve(int64_t first, int64_t rows) {
    first_ = first;
    rows_ = rows;
    tiles_ = (rows + lanes - 1) / lanes;
    std::fill(losses_.begin(), losses_.end(), 0.0);
    pool_.parallel_for(block_columns_,
                       [&](int64_t j, int) { std::fill_n(error_.data() + j * stride_, tiles_ * lanes, 0.0f); });
    solve_blocks(0, (w_.columns + block_columns_ - 1) / block_columns_);
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
    Gemm product{end - middle,
                 tiles_ * lanes,
                 middle - begin,
                 operand(factor_ + begin * w_.columns + middle, w_.columns).transposed(),
                 operand(error_.data() + begin * stride_, stride_),
                 error_.data() + middle * stride_,
                 stride_};
    product.accumulate = begin > 0;  // the columns from 0 on come first
    gemm(pool_, kernels_, product);
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
      losses_[static_cast<size_t>(t)] += kernels_.sweep(tile);
    });
  }

  // Of all rows of the block exactly trunc(rows · size · sparsity) go; of equal scores the first in row order. Returns the
  // score up to which they go.
  float choose(int64_t begin, int64_t size) {
    const auto count = static_cast<int64_t>(static_cast<double>(rows_ * size) * choice_.sparsity);
    pool_.parallel_for(tiles_, [&](int64_t t, int thread) {
      kernels_.score(tile_of(t, thread, begin, size), scores_of(t, size));
      if (count > 0) search_.count(thread, scores_of(t, size), size * lanes);
    });
    if (count <= 0) return -1;
    const auto found = search_.find(pool_, tiles_, count - 1, [&](int64_t t) {
      return std::pair<const float*, int64_t>(scores_of(t, size), size * lanes);
    });
    int64_t surplus = found.smaller + found.equal - count;
    for (int64_t i = rows_ * size - 1; i >= 0 && surplus > 0; --i) {
      float& score = scores_of(i / size / lanes, size)[i % size * lanes + i / size % lanes];
      if (score != found.score) continue;
      score = INFINITY;
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
    if (choice_.mask != nullptr) {
      tile.given = choice_.mask + offset;
    } else if (choice_.couples_rows()) {
      tile.scores = scores_of(t, size);
    } else {
      tile.n = choice_.n;
      tile.m = choice_.m;
    }
    if (!grid_.scale.empty()) {
      tile.grid_scale = grid_.scale.data() + row;
      tile.grid_zero = grid_.zero.data() + row;
      tile.grid_max = grid_.max;
    }
    tile.scratch = tile_scratch_.data() + thread * tile_scratch(block_columns_);
    return tile;
  }

  float* scores_of(int64_t t, int64_t size) { return scores_.data() + t * lanes * size; }

  ThreadPool& pool_;
  const Kernels& kernels_;
  const WeightMatrix& w_;
  const float* factor_;
  const Choice& choice_;
  const int64_t block_columns_;
  const Grid& grid_;

  const int64_t stride_;
  Scratch<float> error_;  // [columns][stride]
  Scratch<float> block_factor_;  // R_BB
  Scratch<float> scores_;  // [tiles][B][lanes]
  Scratch<float> tile_scratch_;  // of each thread
  std::vector<double> losses_;  // of each tile
  int64_t first_ = 0, rows_ = 0, tiles_ = 0;
  RankSearch search_;
};

// Masks by scores that do not change while pruning, and zeroes the weights. choose_row(r, scores, mask) serves where the
// choice is by sparsity; score(w, j) is that of a weight in column j.
template <typename Score, typename ChooseRow>
void prune_by_score(ThreadPool& pool, const WeightMatrix& w, const Choice& choice, const Score& score,
                    const ChooseRow& choose_row) {
  std::vector<std::vector<float>> scores_of(static_cast<size_t>(pool.threads()));
  pool.parallel_for(w.rows, [&](int64_t r, int thread) {
    float* weight = w.weight + r * w.columns;
    uint8_t* mask = w.mask + r * w.columns;
    if (choice.mask != nullptr) {
      const uint8_t* given = choice.mask + r * w.columns;
      for (int64_t j = 0; j < w.columns; ++j) mask[j] = given[j] != 0;
    } else {
      auto& scores = scores_of[static_cast<size_t>(thread)];
      scores.resize(static_cast<size_t>(w.columns));
      for (int64_t j = 0; j < w.columns; ++j) scores[static_cast<size_t>(j)] = score(weight[j], j);
      if (choice.m > 0) {
        select_groups(scores.data(), w.columns, choice.n, choice.m, mask);
      } else {
        choose_row(scores.data(), mask);
      }
    }
    for (int64_t j = 0; j < w.columns; ++j)
      if (mask[j]) weight[j] = 0;
  });
}

}  // namespace

double prune_sparsegpt(ThreadPool& pool, const Kernels& kernels, const WeightMatrix& w, const float* factor,
                       const uint8_t* dead, const Choice& choice, int64_t block_size, int bits) {
  require_finite(pool, kernels, w);
  require_groups(w, choice);
  const Grid grid(pool, w, bits);
  zero_dead_columns(pool, w, dead);
  int64_t block_columns = block_size, chunk = w.rows;
  if (!choice.couples_rows()) {
    // The result does not depend on the block size, and rows are independent.
    block_columns = choice.mask != nullptr ? free_block : std::max<int64_t>(free_block / choice.m, 1) * choice.m;
    chunk = chunk_rows(w.rows, w.columns);
  }
  RowSolver solver(pool, kernels, w, factor, choice, chunk, std::min(block_columns, w.columns), grid);
  double loss = 0;
  for (int64_t first = 0; first < w.rows; first += chunk) loss += solver.solve(first, std::min(chunk, w.rows - first));
  // A loss beyond what a double holds comes of weights that are not finite.
  if (!std::isfinite(loss)) require_finite(pool, kernels, w);
  return 0.5 * loss;
}

void prune_magnitude(ThreadPool& pool, const Kernels& kernels, const WeightMatrix& w, const Choice& choice) {
  require_finite(pool, kernels, w);
  require_groups(w, choice);
  float threshold = -1;
  if (choice.couples_rows() && choice.sparsity > 0) {
    // The reference prunes up to the threshold at this rank, which it counts in, and weights of the same size with it.
    const auto rank = static_cast<int64_t>(static_cast<double>(w.rows * w.columns) * choice.sparsity);
    const auto row = [&](int64_t r) { return std::pair<const float*, int64_t>(w.weight + r * w.columns, w.columns); };
    RankSearch search(pool.threads(), kernels);
    pool.parallel_for(w.rows, [&](int64_t r, int thread) { search.count(thread, row(r).first, w.columns); });
    threshold = search.find(pool, w.rows, std::min(rank, w.rows * w.columns - 1), row).score;
  }
  prune_by_score(
      pool, w, choice, [](float weight, int64_t) { return std::fabs(weight); },
      [&](const float* scores, uint8_t* mask) {
        for (int64_t j = 0; j < w.columns; ++j) mask[j] = scores[j] <= threshold;
      });
}

void prune_wanda(ThreadPool& pool, const Kernels& kernels, const WeightMatrix& w, const float* squares,
                 const Choice& choice) {
  require_finite(pool, kernels, w);
  require_groups(w, choice);
  if (!kernels.all_finite(squares, w.columns)) throw Error("NON_FINITE", "the layer's inputs have a NaN or infinite entry");
  std::vector<float> norms(squares, squares + w.columns);
  for (float& norm : norms) norm = std::sqrt(norm);
  prune_by_score(
      pool, w, choice, [&](float weight, int64_t j) { return std::fabs(weight) * norms[static_cast<size_t>(j)]; },
      [&](const float* scores, uint8_t* mask) {
        select_smallest(scores, w.columns, static_cast<int64_t>(static_cast<double>(w.columns) * choice.sparsity), mask);
      });
}

}  // namespace sparsegpt::cpu
