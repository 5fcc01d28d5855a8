// The column loop of SparseGPT over some rows of one block, in terms of the factor R (H = R Rᵀ, U = R⁻¹) and of the errors
// E = W - Q alone. The paper's scaled errors are E R, so the weight that column j has when its turn comes is
//
//     w_j = W_j + (Σ_{k < j} E_k R_kj) / R_jj
//
// and no inverse is needed. `error` enters with the columns before the block summed up, and leaves with E.
#include "cpu/sweep.h"

#include "cpu/kernels/lanes.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

// Stands for a pruned weight until the tile is written, when it becomes a zero and a one in the mask. Weights are finite.
constexpr int32_t pruned_bits = -1;

// --- which columns of a strip to prune, in `width` rows -----------------------------------------------------------------
// begin: the strip's first column; dense, carried: weights and sums of its columns, as finish_strip() has them.

struct ByScore {
  const BlockTile& tile;

  void operator()(vi* prune, int64_t begin, int64_t count, int64_t r, const vf*, const vf*, const float*, vf*) const {
#pragma GCC unroll 8
    for (int64_t j = 0; j < count; ++j) prune[j] = load(tile.scores + (begin + j) * lanes + r) <= tile.threshold;
  }
};

struct ByMask {
  const float* marks;  // [B][lanes]: -1 (as an integer) where to prune, else 0

  void operator()(vi* prune, int64_t begin, int64_t count, int64_t r, const vf*, const vf*, const float*, vf*) const {
#pragma GCC unroll 8
    for (int64_t j = 0; j < count; ++j) prune[j] = as_int(load(marks + (begin + j) * lanes + r));
  }
};

// The strip is one n:m group, scored with the weights as they are when the loop reaches it. The leftmost of equal scores
// goes first. `smallest` is n where it is known, else 0.
template <int64_t smallest>
struct ByGroup {
  const BlockTile& tile;

  void operator()(vi* prune, int64_t begin, int64_t m, int64_t r, const vf* dense, const vf* carried, const float* inverses,
                  vf* scratch) const {
    (void)r;
    vf* z = scratch;  // of z R_BB = carried
    vf* scores = scratch + m;
    const float* factor = tile.factor + begin * tile.columns + begin;
#pragma GCC unroll 8
    for (int64_t j = 0; j < m; ++j) {
      vf rest = carried[j];
#pragma GCC unroll 8
      for (int64_t k = 0; k < j; ++k) rest -= z[k] * factor[k * tile.columns + j];
      z[j] = rest * inverses[j];
      const vf scaled = (dense[j] + z[j]) * factor[j * tile.columns + j];
      scores[j] = as_float(as_int(scaled) & 0x7fffffff & (dense[j] != vf{}));
    }
    if (smallest > 0) {
      // With the column in the last bits no two are equal, and after n rounds of bubble sort the n-th smallest is in place.
      vi* sorted = reinterpret_cast<vi*>(z);
#pragma GCC unroll 8
      for (int64_t j = 0; j < m; ++j) prune[j] = sorted[j] = (as_int(scores[j]) & -8) | static_cast<int32_t>(j);
#pragma GCC unroll 8
      for (int64_t a = 0; a < smallest; ++a)
#pragma GCC unroll 8
        for (int64_t b = m - 1; b > a; --b) {
          const vi less = sorted[b] < sorted[b - 1] ? sorted[b] : sorted[b - 1];
          sorted[b] = sorted[b] < sorted[b - 1] ? sorted[b - 1] : sorted[b];
          sorted[b - 1] = less;
        }
      const vi threshold = sorted[smallest - 1];
#pragma GCC unroll 8
      for (int64_t j = 0; j < m; ++j) prune[j] = prune[j] <= threshold;
    } else {
      for (int64_t a = 0; a < m; ++a) {
        vi rank = {};
        for (int64_t b = 0; b < m; ++b) rank -= b < a ? scores[b] <= scores[a] : scores[b] < scores[a];
        prune[a] = rank < tile.n;
      }
    }
  }
};

// --- the sweep ------------------------------------------------------------------------------------------------------------

// The grids of one group of columns.
struct Grid {
  alignas(64) float scale[lanes], zero[lanes];
  float max;
  int64_t group = -1;

  // Takes those of a column of the block.
  void enter(const BlockTile& tile, int64_t column) {
    if (tile.steps == nullptr) return;
    const int64_t wanted = (tile.first_column + column) / tile.group_size;
    if (wanted == group) return;
    group = wanted;
    max = tile.largest_code;
    for (int64_t r = 0; r < lanes; ++r) {
      scale[r] = r < tile.rows ? tile.steps[r * tile.groups + group] : 1.0f;
      zero[r] = r < tile.rows ? tile.zeros[r * tile.groups + group] : 0.0f;
    }
  }
  vf nearest(vf x, int64_t r) const {
    const vf s = load(scale + r), z = load(zero + r);
    const vf limit = broadcast(4194304.0f);  // keeps round_even exact
    const vf steps = round_even(vmin(vmax(x / s, -limit), limit)) + z;
    return s * (vmin(vmax(steps, vf{}), broadcast(max)) - z);
  }
};

// The columns [begin, begin + count) of the block, whose sums have all errors of the columns before them. `fixed` is `count`
// where it is known, so that all but the inverses of R_jj stays in registers; else scratch holds 5 * count vectors more.
template <int64_t fixed, typename Choose>
void finish_strip(const BlockTile& tile, float* w, int64_t begin, int64_t some, const Choose& choose, const Grid& grid,
                  vf* squares, float* scratch) {
  const int64_t count = fixed > 0 ? fixed : some;
  const float* factor = tile.factor + begin * tile.columns + begin;
  float* inverses = scratch;
  for (int64_t j = 0; j < count; ++j) inverses[j] = 1.0f / factor[j * tile.columns + j];
  for (int64_t r = 0; r < lanes; r += width) {
    vf registers[fixed > 0 ? 5 * fixed : 1];
    vf* dense = fixed > 0 ? registers : reinterpret_cast<vf*>(scratch + count);
    vf* carried = dense + count;
    vi* prune = reinterpret_cast<vi*>(carried + count);
#pragma GCC unroll 8
    for (int64_t j = 0; j < count; ++j) {
      dense[j] = load(w + (begin + j) * lanes + r);
      carried[j] = load(tile.error + (begin + j) * tile.error_stride + r);
    }
    choose(prune, begin, count, r, dense, carried, inverses, carried + 2 * count);
#pragma GCC unroll 8
    for (int64_t j = 0; j < count; ++j) {
      const float diagonal = factor[j * tile.columns + j];
      const vf value = dense[j] + carried[j] * inverses[j];
      const vi gone = prune[j] | (dense[j] == vf{});
      vf q = select(gone, vf{}, value);
      if (tile.steps != nullptr) q = grid.nearest(q, r);
      const vf loss = (value - q) * (diagonal * tile.loss_scale), error = dense[j] - q;
      squares[r / width] += loss * loss;
      store(tile.error + (begin + j) * tile.error_stride + r, error);
      store(w + (begin + j) * lanes + r, select(gone, as_float(vi{} + pruned_bits), q));
#pragma GCC unroll 8
      for (int64_t k = j + 1; k < count; ++k) carried[k] += error * factor[j * tile.columns + k];
    }
  }
}

// `fixed` is `strip` where that is known.
template <int64_t fixed, typename Choose>
double sweep_strips(const BlockTile& tile, float* w, int64_t strip, const Choose& choose, float* scratch) {
  Grid grid;
  vf squares[lanes / width] = {};
  for (int64_t begin = 0; begin < tile.columns; begin += strip) {
    const int64_t count = begin + strip < tile.columns ? strip : tile.columns - begin;
    grid.enter(tile, begin);
    accumulate<false>(tile.error + begin * tile.error_stride, tile.error_stride, tile.error, tile.error_stride,
                      tile.factor + begin, 1, tile.columns, count, begin);
    if (count == fixed) {
      finish_strip<fixed>(tile, w, begin, count, choose, grid, squares, scratch);
    } else {
      finish_strip<0>(tile, w, begin, count, choose, grid, squares, scratch);
    }
  }
  double loss = 0;
  for (int64_t v = 0; v < lanes / width; ++v)
    for (int64_t i = 0; i < width; ++i) loss += squares[v][i];
  return loss;
}

void load_weights(float* w, const BlockTile& tile) {
  load_lanes(w, lanes, tile.weight, tile.stride, tile.rows, tile.columns);
}

}  // namespace

void score(const BlockTile& tile, float* scores) {
  const int64_t columns = tile.columns;
  float* w = tile.scratch;
  load_weights(w, tile);
  for (int64_t j = 0; j < columns; ++j)
    for (int64_t r = 0; r < lanes; r += width) store(scores + j * lanes + r, load(tile.error + j * tile.error_stride + r));
  solve_lanes(scores, lanes, tile.factor, 1, columns, columns);
  for (int64_t j = 0; j < columns; ++j) {
    float* s = scores + j * lanes;
    const float diagonal = tile.factor[j * columns + j];
    for (int64_t r = 0; r < lanes; r += width) {
      const vf dense = load(w + j * lanes + r), scaled = (dense + load(s + r)) * diagonal;
      store(s + r, as_float(as_int(vmax(-scaled, scaled)) & (dense != vf{})));
    }
    for (int64_t r = tile.rows; r < lanes; ++r) s[r] = __builtin_inff();
  }
}

double sweep(const BlockTile& tile) {
  const int64_t columns = tile.columns;
  float* w = tile.scratch;  // [B][lanes]: weights, then pruned weights
  float* marks = w + columns * lanes;  // [B][lanes]
  float* strip_scratch = w + 2 * columns * lanes;
  load_weights(w, tile);

  double loss = 0;
  if (tile.scores != nullptr) {
    loss = sweep_strips<strip_columns>(tile, w, strip_columns, ByScore{tile}, strip_scratch);
  } else if (tile.given != nullptr) {
    gather_lanes(marks, lanes, tile.rows, columns, [&](int64_t row, int64_t column, int64_t count) {
      const uint8_t* given = tile.given + row * tile.stride + column;
      vi mark = {};
      for (int64_t i = 0; i < count; ++i) mark[i] = -(given[i] != 0);
      return as_float(mark);
    });
    loss = sweep_strips<strip_columns>(tile, w, strip_columns, ByMask{marks}, strip_scratch);
  } else if (tile.n == 2 && tile.m == 4) {
    loss = sweep_strips<4>(tile, w, tile.m, ByGroup<2>{tile}, strip_scratch);
  } else if (tile.n == 4 && tile.m == 8) {
    loss = sweep_strips<8>(tile, w, tile.m, ByGroup<4>{tile}, strip_scratch);
  } else {
    loss = sweep_strips<0>(tile, w, tile.m, ByGroup<0>{tile}, strip_scratch);
  }

  scatter_lanes(w, lanes, tile.rows, columns, [&](int64_t row, int64_t column, vf values, int64_t count) {
    typedef uint8_t vb __attribute__((vector_size(width)));
    const vi pruned = as_int(values) == pruned_bits;
    store_first(tile.weight + row * tile.stride + column, select(pruned, vf{}, values), count);
    const vb ones = __builtin_convertvector(-pruned, vb);
    uint8_t* mask = tile.mask + row * tile.stride + column;
    if (count == width) {
      memcpy(mask, &ones, width);
    } else {
      memcpy(mask, &ones, static_cast<size_t>(count));
    }
  });
  return loss;
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
