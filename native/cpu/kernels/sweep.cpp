// The column loop of SparseGPT over some rows of one block, in terms of the factor R (H = R Rᵀ, U = R⁻¹) and of the errors
// E = W - Q alone. The paper's scaled errors are E R, so the weight that column j has when its turn comes is
//
//     w_j = W_j + (Σ_{k < j} E_k R_kj) / R_jj
//
// and no inverse is needed. `error` enters with the columns before the block summed up, and leaves with E.
#include "cpu/kernels/lanes.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

// Stands for a pruned weight until the tile is written, when it becomes a zero and a one in the mask. Weights are finite.
constexpr int32_t pruned_bits = -1;

// Solves for the weights of one n:m group as they are when the loop reaches it, and marks the n smallest scores in every
// lane with -1, the others with 0; the leftmost of equal ones goes first. marks: [m][lanes]; scratch: [2 m][lanes].
// `fixed` is m where that is known, so that everything stays in registers.
template <int64_t fixed>
void mark_group(int32_t* marks, const BlockTile& tile, const float* weight, const float* error, const float* factor,
                float* scratch) {
  const int64_t m = fixed > 0 ? fixed : tile.m;
  for (int64_t r = 0; r < lanes; r += width) {
    vf registers[fixed > 0 ? 2 * fixed : 1];
    vf* z = fixed > 0 ? registers : reinterpret_cast<vf*>(scratch);  // of z R_BB = error
    vf* score = z + m;
#pragma GCC unroll 8
    for (int64_t j = 0; j < m; ++j) {
      const float* column = factor + j;  // of R
      vf carried = load(error + j * tile.error_stride + r);
#pragma GCC unroll 8
      for (int64_t k = 0; k < j; ++k) carried -= z[k] * column[k * tile.columns];
      const float diagonal = column[j * tile.columns];
      z[j] = carried * (1.0f / diagonal);
      const vf scaled = (load(weight + j * lanes + r) + z[j]) * diagonal;
      score[j] = vmax(-scaled, scaled);
    }
#pragma GCC unroll 8
    for (int64_t a = 0; a < m; ++a) {
      vi rank = {};
#pragma GCC unroll 8
      for (int64_t b = 0; b < m; ++b)
        if (b != a) rank -= b < a ? score[b] <= score[a] : score[b] < score[a];
      store(reinterpret_cast<float*>(marks + a * lanes + r), as_float(rank < tile.n));
    }
  }
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
      const vf scaled = (load(w + j * lanes + r) + load(s + r)) * diagonal;
      store(s + r, vmax(-scaled, scaled));
    }
    for (int64_t r = tile.rows; r < lanes; ++r) s[r] = __builtin_inff();
  }
}

double sweep(const BlockTile& tile) {
  const int64_t columns = tile.columns;
  float* w = tile.scratch;  // [B][lanes]: weights, then pruned weights
  auto* marks = reinterpret_cast<int32_t*>(w + columns * lanes);  // [B][lanes]: -1 where to prune
  float* group_scratch = w + 2 * columns * lanes;  // of mark_group, whose m may be as large as B
  load_weights(w, tile);

  const bool groups = tile.given == nullptr && tile.scores == nullptr;
  if (tile.given != nullptr) {
    gather_lanes(reinterpret_cast<float*>(marks), lanes, tile.rows, columns,
                 [&](int64_t row, int64_t column, int64_t count) {
                   const uint8_t* given = tile.given + row * tile.stride + column;
                   vi mark = {};
                   for (int64_t i = 0; i < count; ++i) mark[i] = -(given[i] != 0);
                   return as_float(mark);
                 });
  }
  float scale[lanes], zero[lanes];
  if (tile.grid_scale != nullptr) {
    for (int64_t r = 0; r < lanes; ++r) {
      scale[r] = r < tile.rows ? tile.grid_scale[r] : 1.0f;
      zero[r] = r < tile.rows ? tile.grid_zero[r] : 0.0f;
    }
  }

  // A strip holds whole n:m groups.
  const int64_t group = groups ? tile.m : 1;
  const int64_t strip = group > strip_columns ? group : strip_columns / group * group;
  vf squares[lanes / width] = {};
  for (int64_t begin = 0; begin < columns; begin += strip) {
    const int64_t end = begin + strip < columns ? begin + strip : columns;
    accumulate<false>(tile.error + begin * tile.error_stride, tile.error_stride, tile.error, tile.error_stride,
                      tile.factor + begin, 1, columns, end - begin, begin);
    for (int64_t j = begin; j < end; ++j) {
      const float* column = tile.factor + j;  // of R
      if (groups && j % group == 0) {
        // What is missing in `error` are the groups of this strip before it.
        for (int64_t i = j; i < j + group && j > begin; ++i)
          for (int64_t r = 0; r < lanes; r += width) {
            vf carried = load(tile.error + i * tile.error_stride + r);
            for (int64_t k = begin; k < j; ++k)
              carried += load(tile.error + k * tile.error_stride + r) * tile.factor[k * columns + i];
            store(tile.error + i * tile.error_stride + r, carried);
          }
        const auto mark = group == 4 ? mark_group<4> : group == 8 ? mark_group<8> : mark_group<0>;
        mark(marks + j * lanes, tile, w + j * lanes, tile.error + j * tile.error_stride, column + j * columns, group_scratch);
      }
      const int64_t first = groups ? j / group * group : begin;
      const float diagonal = column[j * columns], inverse = 1.0f / diagonal;
      float* error = tile.error + j * tile.error_stride;
      for (int64_t r = 0; r < lanes; r += width) {
        vf carried = load(error + r);
        for (int64_t k = first; k < j; ++k) carried += load(tile.error + k * tile.error_stride + r) * column[k * columns];
        const vf dense = load(w + j * lanes + r), value = dense + carried * inverse;
        const vi prune = tile.scores != nullptr ? load(tile.scores + j * lanes + r) <= tile.threshold
                                                : as_int(load(reinterpret_cast<float*>(marks) + j * lanes + r));
        vf q = select(prune, vf{}, value);
        if (tile.grid_scale != nullptr) {
          const vf s = load(scale + r), z = load(zero + r);
          const vf limit = broadcast(4194304.0f);  // keeps round_even exact
          const vf steps = round_even(vmin(vmax(q / s, -limit), limit)) + z;
          q = s * (vmin(vmax(steps, vf{}), broadcast(tile.grid_max)) - z);
        }
        const vf loss = (value - q) * diagonal;
        squares[r / width] += loss * loss;
        store(error + r, dense - q);
        store(w + j * lanes + r, select(prune, as_float(vi{} + pruned_bits), q));
      }
    }
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
  double loss = 0;
  for (int64_t v = 0; v < lanes / width; ++v)
    for (int64_t i = 0; i < width; ++i) loss += squares[v][i];
  return loss;
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
