// Choosing the smallest scores of a matrix, for the operations of select.cu and the solver.
#pragma once

#include "cuda/context.h"
#include "cuda/sizes.h"

namespace sparsegpt::cuda {

// Which weights of a matrix go first: what the score of weight (i, j) is. It is formed where it is needed and never stored.
struct Ranking {
  enum Kind { magnitude, sparsegpt } kind;  // |w|, (w / factor[j])²
  const float* weight;                      // [rows, columns], rows `stride` apart
  int64_t rows, columns, stride;
  const float* factor;
  const uint8_t* zeros = nullptr;           // where not zero the score is 0; rows `zeros_stride` apart, or null
  int64_t zeros_stride = 0;
  const uint32_t* any_zeros = nullptr;      // whether to look at `zeros` at all: dense matrices need not read them
};

// The outcome of a selection: scores whose bits are below `key` go, and so do the first `ties` of those that equal it, in the
// order of their index.
struct Threshold {
  uint32_t key;
  unsigned long long ties;
};

// Working memory of a selection; all zero before the first and after each.
struct SelectionState {
  unsigned long long histogram[selection_buckets];
  unsigned long long remaining;
  uint32_t prefix, ticket;
  Threshold threshold;
};
static_assert(sizeof(SelectionState) == selection_state_bytes);

// The quota of a tile that loses every score that equals the threshold.
constexpr unsigned long long all_equal = ~0ull;

// Selections among all scores of a matrix, whose rows are looked at in tiles.
class Chooser {
 public:
  Chooser(Context& context, int64_t rows, int64_t tile_rows);

  // Exactly trunc(count · sparsity) of all scores, of equal ones the first.
  void choose(const Ranking& scores, double sparsity) const;
  // `count` of them, 0 < count, and all that equal the last.
  void choose_inclusive(const Ranking& scores, int64_t count) const;
  // mask = 1 for what has been chosen; mask rows `mask_stride` apart.
  void write_mask(const Ranking& scores, uint8_t* mask, int64_t mask_stride) const;

  SelectionState* state() const { return reinterpret_cast<SelectionState*>(state_.bytes()); }
  // Of each tile, how many of the scores that equal the threshold go.
  unsigned long long* quota() const { return reinterpret_cast<unsigned long long*>(quota_.bytes()); }

 private:
  void find_threshold(const Ranking& scores, int64_t count) const;

  cudaStream_t stream_;
  int64_t tile_rows_;
  Tensor state_, quota_;
};

// The n smallest of every m neighbours, the leftmost of equal ones first.
void mask_groups(cudaStream_t stream, const Ranking& scores, int n, int m, uint8_t* mask, int64_t mask_stride);

}  // namespace sparsegpt::cuda
