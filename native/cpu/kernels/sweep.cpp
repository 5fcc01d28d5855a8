// The column loop of SparseGPT over some rows of one block, in the paper's symbols: for each column i, prune (and round) it,
// and move its error onto the columns to its right through row i of U.
//
// Rows are independent, so they lie along the vector lanes: the block is held transposed, [column][row]. Columns are taken in
// strips; errors reach the rest of the strip at once and the rest of the block once per strip, as one small matrix product
// that stays in registers.
#include "cpu/kernels/level.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

constexpr int64_t lanes = sweep_rows;
constexpr int64_t vectors = lanes / width;
constexpr int64_t strip_columns = 16;

// Marks the n smallest of m scores in every lane; the leftmost of equal ones goes first.
// scores and marks are [m][lanes]; marks are -1 (prune) or 0.
void mark_smallest(float* marks, const float* scores, int n, int m) {
  for (int64_t r = 0; r < lanes; r += width) {
    for (int a = 0; a < m; ++a) {
      const vf mine = load(scores + a * lanes + r);
      vi rank = {};
      for (int b = 0; b < m; ++b) {
        const vf other = load(scores + b * lanes + r);
        rank -= b < a ? other <= mine : other < mine;
      }
      store(marks + a * lanes + r, as_float(rank < n));
    }
  }
}

// w[j] -= Σ_i U[i, j] err[i] for the columns j in [begin, end) and the `count` columns i of a finished strip.
void update_rest(float* w, const float* err, const float* u, int64_t block, int64_t count, int64_t begin, int64_t end) {
  constexpr int64_t group = width == 16 ? 4 : 2;  // columns that share the loads of err
  constexpr int64_t chunk = 4 * width;
  for (int64_t r = 0; r < lanes; r += chunk) {
    int64_t j = begin;
    for (; j + group <= end; j += group) {
      vf sums[group][4] = {};
      for (int64_t i = 0; i < count; ++i) {
        const float* e = err + i * lanes + r;
        const vf e0 = load(e), e1 = load(e + width), e2 = load(e + 2 * width), e3 = load(e + 3 * width);
#pragma GCC unroll 4
        for (int64_t g = 0; g < group; ++g) {
          const float factor = u[i * block + j + g];
          sums[g][0] += e0 * factor;
          sums[g][1] += e1 * factor;
          sums[g][2] += e2 * factor;
          sums[g][3] += e3 * factor;
        }
      }
#pragma GCC unroll 4
      for (int64_t g = 0; g < group; ++g)
#pragma GCC unroll 4
        for (int64_t v = 0; v < 4; ++v) {
          float* p = w + (j + g) * lanes + r + v * width;
          store(p, load(p) - sums[g][v]);
        }
    }
    for (; j < end; ++j) {
      vf sums[4] = {};
      for (int64_t i = 0; i < count; ++i)
        for (int64_t v = 0; v < 4; ++v) sums[v] += load(err + i * lanes + r + v * width) * u[i * block + j];
      for (int64_t v = 0; v < 4; ++v) {
        float* p = w + j * lanes + r + v * width;
        store(p, load(p) - sums[v]);
      }
    }
  }
}

}  // namespace

double sweep(const SweepTile& tile) {
  const int64_t block = tile.block;
  const float* u = tile.inverse_factor;
  float* w = tile.scratch;  // [block][lanes]: weights, then pruned weights
  float* marks = w + block * lanes;  // [block][lanes]: -1 where pruned
  float* err = marks + block * lanes;  // [strip][lanes]: errors of the strip; before them, scores of a group

  for (int64_t r = 0; r < lanes; ++r) {
    if (r < tile.rows) {
      for (int64_t j = 0; j < block; ++j) w[j * lanes + r] = tile.weights[r * block + j];
    } else {
      for (int64_t j = 0; j < block; ++j) w[j * lanes + r] = 0;
    }
  }
  if (tile.chosen != nullptr) {
    auto* mask = reinterpret_cast<int32_t*>(marks);
    for (int64_t r = 0; r < lanes; ++r)
      for (int64_t j = 0; j < block; ++j)
        mask[j * lanes + r] = r < tile.rows && tile.chosen[r * tile.chosen_stride + j] != 0 ? -1 : 0;
  }
  float scale[lanes], zero[lanes];
  for (int64_t r = 0; r < lanes; ++r) {
    const bool used = tile.grid_scale != nullptr && r < tile.rows;
    scale[r] = used ? tile.grid_scale[r] : 1.0f;
    zero[r] = used ? tile.grid_zero[r] : 0.0f;
  }

  // A strip holds whole n:m groups, so that a group's scores see every earlier column.
  const int64_t group = tile.chosen == nullptr ? tile.m : 1;
  const int64_t strip = group > strip_columns ? group : strip_columns / group * group;
  double loss = 0;
  for (int64_t s0 = 0; s0 < block; s0 += strip) {
    const int64_t s1 = s0 + strip < block ? s0 + strip : block;
    for (int64_t i = s0; i < s1; ++i) {
      if (tile.chosen == nullptr && i % group == 0) {
        // The errors of this strip so far occupy err[0, i - s0); the scores go behind them.
        float* scores = err + (i - s0) * lanes;
        for (int64_t j = 0; j < group; ++j) {
          const float inverse = 1.0f / u[(i + j) * block + i + j];
          for (int64_t r = 0; r < lanes; r += width) {
            const vf s = load(w + (i + j) * lanes + r) * inverse;
            store(scores + j * lanes + r, s * s);
          }
        }
        mark_smallest(marks + i * lanes, scores, tile.n, tile.m);
      }
      const float inverse = 1.0f / u[i * block + i];
      float* e = err + (i - s0) * lanes;
      vf squares = {};
      for (int64_t r = 0; r < lanes; r += width) {
        const vf value = load(w + i * lanes + r);
        vf q = select(as_int(load(marks + i * lanes + r)), vf{}, value);
        if (tile.grid_scale != nullptr) {
          const vf s = load(scale + r), z = load(zero + r);
          const vf limit = broadcast(4194304.0f);  // keeps round_even exact
          const vf steps = round_even(vmin(vmax(q / s, -limit), limit)) + z;
          q = s * (vmin(vmax(steps, vf{}), broadcast(tile.grid_max)) - z);
        }
        const vf error = (value - q) * inverse;
        store(w + i * lanes + r, q);
        store(e + r, error);
        squares += error * error;
      }
      loss += horizontal_sum(squares);
      for (int64_t j = i + 1; j < s1; ++j) {
        const float factor = u[i * block + j];
        for (int64_t r = 0; r < lanes; r += width) store(w + j * lanes + r, load(w + j * lanes + r) - load(e + r) * factor);
      }
    }
    update_rest(w, err, u + s0 * block, block, s1 - s0, s1, block);
  }

  const auto* mask = reinterpret_cast<const int32_t*>(marks);
  for (int64_t r = 0; r < tile.rows; ++r) {
    for (int64_t j = 0; j < block; ++j) {
      const float q = w[j * lanes + r];
      tile.pruned[r * tile.stride + j] = q;
      tile.dense[r * tile.stride + j] -= q;
      tile.mask[r * tile.stride + j] = mask[j * lanes + r] != 0;
    }
  }
  return loss;
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
