// The pruning methods on one weight matrix, [rows, columns] with rows `columns` apart, changed in place.
#pragma once

#include <cstdint>

#include "core/thread_pool.h"
#include "cpu/kernels/kernels.h"

namespace sparsegpt::cpu {

// Which weights go; see sparsegpt::Selection. mask: [rows, columns] or null.
struct Choice {
  double sparsity;
  int n, m;
  const uint8_t* mask;

  // By sparsity the weights of all rows are compared.
  bool couples_rows() const { return mask == nullptr && m == 0; }
};

struct WeightMatrix {
  float* weight;  // in: dense, out: pruned
  uint8_t* mask;  // out: 1 where pruned
  int64_t rows, columns;
};

// SparseGPT. factor: R as factor_hessian left it, [columns, columns]; dead: [columns]; bits: 0 or the width
// of each row's asymmetric min-max grid. Returns ½ Σ (w - q)² / U_jj². Throws NON_FINITE.
//
// Memory beyond the arguments, in bytes, with up(x) the next odd multiple of 64 from x on:
//   by pattern or given mask   4 · columns · up(R), R = min(rows, max(256, 2²³ / columns - 64)), so at most 32 MiB or 320 rows
//   by sparsity                4 · up(rows) · (columns + 1.1 · block_size); the 0.1 are candidates for the threshold, all of
//                              the scores where all are equal
//   and always                 4 · B² + threads · (1024 · B + 65536) + 8 · rows, B = the columns of a block: block_size by
//                              sparsity, else 128 or the pattern's m if that is more
// It is the pool's scratch but for the last term and the candidates. The products' own is in gemm.h.
double prune_sparsegpt(ThreadPool& pool, const Kernels& kernels, const WeightMatrix& matrix, const float* factor,
                       const uint8_t* dead, const Choice& choice, int64_t block_size, int bits);

// The smallest |w| of the whole matrix: those up to the one of rank trunc(count * sparsity), counted from 0,
// and all that equal it, as the reference does; bfloat16 weights have many equals.
void prune_magnitude(ThreadPool& pool, const Kernels& kernels, const WeightMatrix& matrix, const Choice& choice);

// The smallest |w| · sqrt(squares[j]) of every row.
void prune_wanda(ThreadPool& pool, const Kernels& kernels, const WeightMatrix& matrix, const float* squares,
                 const Choice& choice);

}  // namespace sparsegpt::cpu
