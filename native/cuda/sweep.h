// The solver's sweep over the columns of one piece of a weight (see solve.cu).
#pragma once

#include "cuda/select.h"

namespace sparsegpt::cuda {

// Pointers are to the piece's first column and row.
struct Sweep {
  int64_t rows, stride;    // of weight, error and mask
  int size;                // columns of the piece
  float* weight;           // in: compensated for all columns before; out: q
  float* error;            // in: dense w; out: w - q
  uint8_t* mask;           // in: 1 where the dense w is zero; out: 1 where pruned
  const uint8_t* chosen;   // given mask (may be `mask` itself), or null
  int64_t chosen_stride;
  const float* packed;     // the piece's factor, see strip_size
  int strip;               // whole groups of m, at most sweep_strip
  const uint32_t* any_zeros;  // whether that is so anywhere
  const float* diagonal;   // U_jj / scale
  const float* scale;      // of (w - q) / U_jj before it is squared
  int n, m;                // m > 0: n of m, else by threshold when nothing is chosen
  const SelectionState* state;
  const unsigned long long* quota;
  const float* steps;  // [rows, groups] of the grids, or null
  const float* zeros;
  int64_t groups, group_size;  // of a row; columns
  int64_t first_column;    // of the piece
  float largest_code;
  double* losses;  // [tiles of sweep_rows rows], added to: scale² times theirs
};
void sweep(cudaStream_t stream, const Sweep& s);

}  // namespace sparsegpt::cuda
