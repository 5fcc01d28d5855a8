#include "cpu/prune.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/require.h"
#include "cpu/factor.h"
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

  Grid(const WeightMatrix& w, int bits) {
    if (bits == 0) return;
    max = static_cast<float>((1 << bits) - 1);
    scale.resize(static_cast<size_t>(w.rows));
    zero.resize(static_cast<size_t>(w.rows));
    for (int64_t r = 0; r < w.rows; ++r) {
      const float* row = w.weight + r * w.columns;
      float low = std::min(*std::min_element(row, row + w.columns), 0.0f);
      float high = std::max(*std::max_element(row, row + w.columns), 0.0f);
      if (low == 0 && high == 0) low = -1, high = 1;
      const float step = (high - low) / max;
      scale[static_cast<size_t>(r)] = step;
      zero[static_cast<size_t>(r)] = std::nearbyint(-low / step);
    }
  }
};

// Masks by a score that does not change while pruning, and zeroes the weights.
template <typename Score>
void prune_by_score(ThreadPool& pool, const Kernels& kernels, const WeightMatrix& w, const Choice& choice, bool per_row,
                    const Score& score) {
  require_finite(pool, kernels, w);
  require_groups(w, choice);
  const auto whole = static_cast<size_t>(w.rows * w.columns);
  if (choice.mask != nullptr) {
    for (size_t i = 0; i < whole; ++i) w.mask[i] = choice.mask[i] != 0;
  } else if (choice.m > 0 || per_row) {
    pool.parallel_for(w.rows, [&](int64_t r, int) {
      std::vector<float> scores(static_cast<size_t>(w.columns));
      for (int64_t j = 0; j < w.columns; ++j) scores[static_cast<size_t>(j)] = score(w.weight[r * w.columns + j], j);
      uint8_t* mask = w.mask + r * w.columns;
      if (choice.m > 0) {
        select_groups(scores.data(), w.columns, choice.n, choice.m, mask);
      } else {
        select_smallest(scores.data(), w.columns, static_cast<int64_t>(static_cast<double>(w.columns) * choice.sparsity),
                        mask);
      }
    });
  } else {
    std::vector<float> scores(whole);
    pool.parallel_for(w.rows, [&](int64_t r, int) {
      for (int64_t j = 0; j < w.columns; ++j)
        scores[static_cast<size_t>(r * w.columns + j)] = score(w.weight[r * w.columns + j], j);
    });
    // The reference prunes up to the threshold at this rank, which it counts in, and weights of the same size
    // with it.
    const auto rank = static_cast<int64_t>(static_cast<double>(whole) * choice.sparsity);
    select_smallest(pool, scores.data(), w.rows * w.columns, choice.sparsity > 0 ? rank + 1 : 0, w.mask);
    float threshold = -1;
    for (size_t i = 0; i < whole; ++i)
      if (w.mask[i]) threshold = std::max(threshold, scores[i]);
    for (size_t i = 0; i < whole; ++i) w.mask[i] = scores[i] <= threshold;
  }
  pool.parallel_for(w.rows, [&](int64_t r, int) {
    for (int64_t i = r * w.columns; i < (r + 1) * w.columns; ++i)
      if (w.mask[i]) w.weight[i] = 0;
  });
}

}  // namespace

double prune_sparsegpt(ThreadPool& pool, const Kernels& kernels, const WeightMatrix& w, const float* factor,
                       const uint8_t* dead, const Choice& choice, int64_t block_size, int bits) {
  require_finite(pool, kernels, w);
  require_groups(w, choice);
  const int64_t rows = w.rows, columns = w.columns;
  const bool groups = choice.mask == nullptr && choice.m > 0;
  // An n:m mask does not depend on the block size, so blocks may be cut to hold whole groups.
  if (groups) block_size = std::max<int64_t>(block_size / choice.m * choice.m, choice.m);
  block_size = std::min(block_size, columns);

  const Grid grid(w, bits);
  for (int64_t j = 0; j < columns; ++j)
    if (dead[j])
      for (int64_t r = 0; r < rows; ++r) w.weight[r * columns + j] = 0;

  // `error` holds the dense W right of the current block and E = W - Q left of it.
  float* error = w.weight;
  const auto block_elements = static_cast<size_t>(rows * block_size);
  std::vector<float> pruned(static_cast<size_t>(rows * columns)), block(block_elements), carried(block_elements);
  std::vector<float> inverse(static_cast<size_t>(block_size * block_size));
  std::vector<float> scores;
  std::vector<uint8_t> chosen;
  if (choice.mask == nullptr && !groups) {
    scores.resize(block_elements);
    chosen.resize(block_elements);
  }
  const int64_t tiles = (rows + sweep_rows - 1) / sweep_rows;
  std::vector<double> losses(static_cast<size_t>(tiles));
  std::vector<float> scratch(static_cast<size_t>(pool.threads() * sweep_scratch(block_size)));

  for (int64_t begin = 0; begin < columns; begin += block_size) {
    const int64_t size = std::min(block_size, columns - begin);
    const float* r_block = factor + begin * columns + begin;
    invert_upper(r_block, columns, size, inverse.data());

    // Compensate: W̃_B = W_B + (E_{:,<B} R_{<B,B}) U_BB.
    pool.parallel_for(rows,
                      [&](int64_t r, int) { std::copy_n(error + r * columns + begin, size, block.data() + r * size); });
    if (begin > 0) {
      gemm(pool, kernels,
           {rows, size, begin, operand(error, columns), operand(factor + begin, columns), carried.data(), size});
      Gemm apply{rows, size, size, operand(carried.data(), size), operand(inverse.data(), size), block.data(), size};
      apply.accumulate = true;
      gemm(pool, kernels, apply);
    }

    // Choose: the smallest w² / U_jj² over all rows of the block. n:m groups are chosen in the sweep.
    const uint8_t* mask = choice.mask == nullptr ? nullptr : choice.mask + begin;
    int64_t mask_stride = columns;
    if (!scores.empty()) {
      pool.parallel_for(rows, [&](int64_t r, int) {
        for (int64_t j = 0; j < size; ++j) {
          const float s = block[static_cast<size_t>(r * size + j)] / inverse[static_cast<size_t>(j * size + j)];
          scores[static_cast<size_t>(r * size + j)] = s * s;
        }
      });
      const auto count = static_cast<int64_t>(static_cast<double>(rows * size) * choice.sparsity);
      select_smallest(pool, scores.data(), rows * size, count, chosen.data());
      mask = chosen.data();
      mask_stride = size;
    }

    // Sweep the columns.
    pool.parallel_for(tiles, [&](int64_t t, int thread) {
      const int64_t r = t * sweep_rows;
      SweepTile tile{};
      tile.rows = std::min(sweep_rows, rows - r);
      tile.block = size;
      tile.weights = block.data() + r * size;
      tile.inverse_factor = inverse.data();
      tile.chosen = mask == nullptr ? nullptr : mask + r * mask_stride;
      tile.chosen_stride = mask_stride;
      tile.n = choice.n;
      tile.m = choice.m;
      if (bits > 0) {
        tile.grid_scale = grid.scale.data() + r;
        tile.grid_zero = grid.zero.data() + r;
        tile.grid_max = grid.max;
      }
      tile.pruned = pruned.data() + r * columns + begin;
      tile.dense = error + r * columns + begin;
      tile.mask = w.mask + r * columns + begin;
      tile.stride = columns;
      tile.scratch = scratch.data() + thread * sweep_scratch(block_size);
      losses[static_cast<size_t>(t)] += kernels.sweep(tile);
    });
  }
  pool.parallel_for(rows,
                    [&](int64_t r, int) { std::copy_n(pruned.data() + r * columns, columns, w.weight + r * columns); });
  require_finite(pool, kernels, w);
  double loss = 0;
  for (double part : losses) loss += part;
  return 0.5 * loss;
}

void prune_magnitude(ThreadPool& pool, const Kernels& kernels, const WeightMatrix& w, const Choice& choice) {
  prune_by_score(pool, kernels, w, choice, false, [](float weight, int64_t) { return std::fabs(weight); });
}

void prune_wanda(ThreadPool& pool, const Kernels& kernels, const WeightMatrix& w, const float* squares,
                 const Choice& choice) {
  if (!kernels.all_finite(squares, w.columns)) throw Error("NON_FINITE", "the layer's inputs have a NaN or infinite entry");
  std::vector<float> norms(squares, squares + w.columns);
  for (float& norm : norms) norm = std::sqrt(norm);
  prune_by_score(pool, kernels, w, choice, true,
                 [&](float weight, int64_t j) { return std::fabs(weight) * norms[static_cast<size_t>(j)]; });
}

}  // namespace sparsegpt::cpu
