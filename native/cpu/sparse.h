// Matrix products that skip the zeros of B: the forward pass of a pruned layer. Half of B being zero, in any pattern, takes
// about two thirds of the time.
#pragma once

#include "cpu/gemm.h"

namespace sparsegpt::cpu {

// A part of B: some steps of the depth of at most `sparse_columns` columns.
constexpr int64_t sparse_depth = 64, sparse_pairs_depth = 32, sparse_columns = 64;
struct SparseChunk {
  // Of every entry its value and which slot of A's panel it is multiplied with, with room for an entry for each element and
  // `surplus` more, as whole vectors are stored.
  static constexpr int64_t surplus = 16;
  float* values;
  uint16_t* slots;
  uint32_t* starts;  // [columns + 1]: where the entries of each column begin
};

// Panels of A hold so many rows, [slot][row].
SPARSEGPT_KERNEL(sparse_panel_rows, int64_t, void);
// The elements of b, [columns][sparse_depth], that are not zero; a slot is a step of the depth, as pack() makes it.
SPARSEGPT_KERNEL(compress, void, const SparseChunk& out, const float* b, int64_t columns);
// sums[column][row] += Σ entries of the column · their slots
SPARSEGPT_KERNEL(multiply_entries, void, const SparseChunk& b, int64_t columns, const float* panel, float* sums);
// The same for bfloat16 pairs. An entry is a pair of elements of b, [columns][sparse_pairs_depth], which hold bfloat16 values;
// four steps of the depth have a slot for each of the 6 pairs that they form, so two of four take one entry.
SPARSEGPT_PAIRS_KERNEL(compress_pairs, void, const SparseChunk& out, const float* b, int64_t columns);
SPARSEGPT_PAIRS_KERNEL(multiply_pair_entries, void, const SparseChunk& b, int64_t columns, const float* panel, float* sums);
// Their slots, from `count` units as pack_pairs() makes them.
SPARSEGPT_PAIRS_KERNEL(form_pairs, void, float* panel, const float* units, int64_t count);
// Stores sums[column][row]; the tile has at most a panel's rows, any number of columns, and no diagonal.
SPARSEGPT_KERNEL(store_sums, void, const float* sums, const GemmTile& tile);

// What gemm() computes, for a whole C; false, and nothing done, where B has too few zeros (some of its columns are looked at)
// or A too few rows for that to be faster. The result does not depend on the number of threads.
bool multiply_sparse(ThreadPool& pool, Level level, const Gemm& g);

// The scratch memory that it takes at most, in bytes. The addresses in `g` are not looked at.
size_t sparse_scratch(Level level, int threads, const Gemm& g);

}  // namespace sparsegpt::cpu
