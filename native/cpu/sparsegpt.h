// The SparseGPT solver on one weight matrix, [rows, columns] with rows `columns` apart, changed in place.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/thread_pool.h"
#include "cpu/kernel.h"

namespace sparsegpt::cpu {

// Which weights go besides zeros; see sparsegpt::PruneSparsegpt. given: [rows, columns] or null.
struct Choice {
  double sparsity;
  int n, m;
  const uint8_t* given;

  // By sparsity the weights of all rows are compared.
  bool couples_rows() const { return given == nullptr && m == 0; }
};

struct WeightMatrix {
  float* weight;  // in: dense, out: pruned
  uint8_t* mask;  // out: 1 where pruned
  int64_t rows, columns;
};

// The grids that kept weights are rounded to; see sparsegpt::PruneSparsegpt.
struct Rounding {
  int bits = 0;  // 0: none
  int64_t groups = 1;  // of a row
  bool symmetric = false, clip = false;
  DType type = DType::f32;  // that steps are rounded to
  // [rows, groups]; out
  float* steps = nullptr;
  float* zeros = nullptr;
};

// What the solver's buffers hold. The widest of them is `error`: by pattern or given mask at most 32 MiB or 320 rows, by sparsity
// all rows.
struct SolverSizes {
  SolverSizes(int64_t rows, int64_t columns, bool couples_rows, int m, int64_t block_size);

  int64_t block_columns;  // that are swept together
  int64_t chunk_rows;  // that are solved together
  int64_t stride;  // of the transposed errors
  // Elements.
  int64_t error, block_factor, scores;
  int64_t tile_scratch;  // of each thread
};

// factor: R as factor_hessian left it, [columns, columns]; dead: [columns]. Returns ½ Σ (w - q)² / U_jj². Throws NON_FINITE.
double prune_sparsegpt(ThreadPool& pool, Level level, const WeightMatrix& matrix, const float* factor, const uint8_t* dead,
                       const Choice& choice, int64_t block_size, const Rounding& rounding);

}  // namespace sparsegpt::cpu
