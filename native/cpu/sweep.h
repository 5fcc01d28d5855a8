// The column loop of the SparseGPT solver: what its kernels take.
#pragma once

#include "cpu/kernel.h"
#include "cpu/lanes.h"

namespace sparsegpt::cpu {

// Some rows of one column block of the SparseGPT solver; B = columns.
struct BlockTile {
  int64_t rows;  // at most `lanes`
  int64_t columns;  // of the block
  const float* factor;  // [B, B]: R_BB, upper triangular
  float* weight;  // [rows, B], rows `stride` apart; in: dense, out: pruned
  uint8_t* mask;  // as weight; out: 1 where pruned
  int64_t stride;
  // [B][lanes], columns `error_stride` apart; in: the errors W - Q of the columns before the block times R, out: those of
  // the block. Lanes without a row hold zero.
  float* error;
  int64_t error_stride;
  // What to prune besides zeros, which stay zero: one of the three.
  const uint8_t* given;  // as weight: where not zero
  const float* scores;  // [B][lanes]: where not above the threshold
  float threshold;
  int n, m;  // n of every m
  const float* steps;  // [rows, groups] of the grids, or null
  const float* zeros;  // [rows, groups]
  int64_t groups, group_size;  // of a row; columns
  int64_t first_column;  // of the block
  float largest_code;
  float loss_scale;  // of (w - q) / U_jj before it is squared
  float* scratch;  // tile_scratch(B) floats
};

constexpr int64_t tile_scratch(int64_t columns) { return 4 * columns * lanes; }

// scores [B][lanes] = |w| / U_jj with w compensated for all columns before the block, 0 where it is zero before that;
// infinite in lanes without a row.
SPARSEGPT_KERNEL(score, void, const BlockTile& tile, float* scores);
// Returns Σ (loss_scale (w - q) / U_jj)².
SPARSEGPT_KERNEL(sweep, double, const BlockTile& tile);

}  // namespace sparsegpt::cpu
