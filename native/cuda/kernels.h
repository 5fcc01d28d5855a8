// The kernels of the CUDA backend, each enqueued on a stream. Callers have checked shapes and types; everything lies in
// device memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/backend.h"

namespace sparsegpt::cuda {

// A tensor as kernels see it.
struct View {
  void* data;
  DType dtype;
  int64_t rows, columns, stride;
};
inline View view(const Tensor& t) { return {t.bytes(), t.dtype, t.rows, t.columns, t.stride}; }
inline void* element(const View& v, int64_t row, int64_t column) {
  return static_cast<std::byte*>(v.data) + (row * v.stride + column) * static_cast<int64_t>(dtype_size(v.dtype));
}

// --- forward.cu -------------------------------------------------------------------------------------------------------

void cast(cudaStream_t stream, const View& out, const View& in);
void transpose(cudaStream_t stream, const View& out, const View& in);
void fill(cudaStream_t stream, const View& out, double value);
void set_rows(cudaStream_t stream, const View& out, const View& row);  // out[i, j] = row[j]
void embedding(cudaStream_t stream, const View& out, const View& table, const int32_t* ids, int64_t* bad_position);
void layer_norm(cudaStream_t stream, const View& out, const View& x, const float* weight, const float* bias, float eps);
void rms_norm(cudaStream_t stream, const View& out, const View& x, const float* weight, float eps);
void rotary(cudaStream_t stream, const View& x, const View& cosine, const View& sine, int64_t head_dim, bool interleaved);
void activation(cudaStream_t stream, const View& x, Activation kind);
void gate(cudaStream_t stream, const View& x, const View& up, Activation kind);
void add(cudaStream_t stream, const View& x, const View& y);
void scale(cudaStream_t stream, const View& x, float factor);
void softcap(cudaStream_t stream, const View& x, float cap);
void take_columns(cudaStream_t stream, const View& out, const View& x, int64_t first, int64_t count, int64_t stride);
void scatter_add(cudaStream_t stream, const View& out, const View& x, const int32_t* ids, const float* factors,
                 int64_t* bad_position);
void accumulate_squares(cudaStream_t stream, float* sums, const View& x, float scale);

// Σ exp(logit - largest) over the words seen so far, and the logit of the target.
struct RunningLoss {
  float largest, wanted;
  double sum;
};
// Takes the words [first_word, first_word + logits.columns) in: logits [tokens, words] f32; bias f32 [words] or null.
void extend_losses(cudaStream_t stream, RunningLoss* running, const View& logits, const float* bias, float softcap,
                   const int32_t* targets, int64_t first_word);
void start_losses(cudaStream_t stream, RunningLoss* running, int64_t tokens, const int32_t* targets, int64_t words,
                  int64_t* bad_position);
void finish_losses(cudaStream_t stream, float* losses, const RunningLoss* running, int64_t tokens);

// counts: zeros, then for each pattern the number of its groups that have fewer than n zeros. Adds to what is there.
void count_zeros(cudaStream_t stream, unsigned long long* counts, const View& tensor, const int32_t* patterns,
                 int64_t pattern_count);
void finish_zeros(cudaStream_t stream, double* stats, const unsigned long long* counts, const int32_t* patterns,
                  int64_t pattern_count, int64_t columns);

// --- attention.cu -----------------------------------------------------------------------------------------------------

void attention(cudaStream_t stream, const View& out, const View& q, const View& k, const View& v,
               const AttentionShape& shape, const float* slopes);

// --- select.cu --------------------------------------------------------------------------------------------------------

// Which weights of a matrix go first: the score of weight (i, j).
struct Scores {
  enum Kind { magnitude, wanda, sparsegpt } kind;  // |w|, |w| factor[j], (w / factor[j])²
  const float* weight;                             // [rows, columns], rows `stride` apart
  int64_t rows, columns, stride;
  const float* factor;
};

// The outcome of a selection: scores whose bits are below `key` go, and so do the first `ties` of those that equal it, in the
// order of their index.
struct Threshold {
  uint32_t key;
  unsigned long long ties;
};

constexpr int selection_buckets = 2048;
// Working memory of a selection; all zero before the first and after each.
struct SelectionState {
  unsigned long long histogram[selection_buckets];
  unsigned long long remaining;
  uint32_t prefix, ticket;
  Threshold threshold;
};

// Rows are looked at in tiles. quota[tile] tells how many of the tile's equal scores go (`all_equal`: every one).
constexpr unsigned long long all_equal = ~0ull;
// The threshold for exactly `count` of all scores, 0 < count <= rows · columns.
void find_threshold(cudaStream_t stream, const Scores& scores, unsigned long long count, int64_t tile_rows,
                    SelectionState* state);
// The quotas for it.
void share_ties(cudaStream_t stream, const Scores& scores, int64_t tile_rows, SelectionState* state,
                unsigned long long* quota);
// mask = 1 for what the threshold takes; mask rows `mask_stride` apart.
void mask_smallest(cudaStream_t stream, const Scores& scores, int64_t tile_rows, const SelectionState* state,
                   const unsigned long long* quota, uint8_t* mask, int64_t mask_stride);
// The `count` smallest of each row.
void mask_row_smallest(cudaStream_t stream, const Scores& scores, unsigned long long count, uint8_t* mask,
                       int64_t mask_stride);
// The n smallest of every m neighbours, the leftmost of equal ones first.
void mask_groups(cudaStream_t stream, const Scores& scores, int n, int m, uint8_t* mask, int64_t mask_stride);

// --- solve.cu ---------------------------------------------------------------------------------------------------------

constexpr int sweep_rows = 32;  // rows of a weight that one block of threads sweeps
constexpr int sweep_columns = 128;  // columns that are swept at once, at most
constexpr int sweep_strip = 16;  // columns whose errors meet in registers

// The sweeps cut a matrix into pieces: blocks of `block` columns, each in pieces of at most `piece`.
struct Pieces {
  int64_t columns, block, piece;
  int64_t per_block() const { return (block + piece - 1) / piece; }
  int64_t count() const { return (columns + block - 1) / block * per_block(); }
};

// *bad_row = smallest row with a NaN or infinite entry; upper: right of the diagonal (and on it) only.
void find_non_finite(cudaStream_t stream, const float* matrix, int64_t rows, int64_t columns, bool upper, int64_t* bad_row);

struct Diagonal {
  double mean;
  int64_t dead;
};
// diagonal[j] = H_jj, or 1 and dead[j] = 1 where that is zero; their mean.
void read_diagonal(cudaStream_t stream, const float* hessian, int64_t n, float* diagonal, uint8_t* dead, Diagonal* summary);
// The lower triangle from the upper one.
void mirror(cudaStream_t stream, float* matrix, int64_t n);
// Element k becomes element count - 1 - k.
void reverse(cudaStream_t stream, float* data, int64_t count);
// matrix_jj = diagonal[n - 1 - j] + dampening · mean: the matrix has been reversed.
void set_reversed_diagonal(cudaStream_t stream, float* matrix, int64_t n, const float* diagonal, const Diagonal* summary,
                           double dampening);

// *info = 1 when a diagonal entry of the factor is not a positive number; else it stays as it is.
void check_diagonal(cudaStream_t stream, const float* matrix, int64_t n, int* info);

// Clocks on the device: start() writes the time into stats[seconds], the others replace it by what has passed.
void start_clock(cudaStream_t stream, double* stats, int64_t seconds_index);
void finish_factor(cudaStream_t stream, double* stats, double dampening, int retries, const Diagonal* summary);
// losses: [count] partial sums, or null where the method has none.
void finish_solve(cudaStream_t stream, double* stats, const double* losses, int64_t count, const unsigned long long* zeros);

// For every piece q: inverse[q] = R_qq⁻¹ [piece, piece], and packed[q] the same laid out for the sweep in strips of `strip`
// columns, packed_size floats; inverse_diagonal [columns] = U_jj.
int64_t packed_size(int64_t piece, int strip);
void invert_pieces(cudaStream_t stream, const float* factor, const Pieces& pieces, int strip, float* inverse, float* packed,
                   float* inverse_diagonal);
// Each row's asymmetric grid of 2^bits values from its smallest and largest weight, with zero on the grid.
void make_grid(cudaStream_t stream, const float* weight, int64_t rows, int64_t columns, int bits, float* scale, float* zero);
void zero_dead(cudaStream_t stream, float* weight, int64_t rows, int64_t columns, const uint8_t* dead);
// out [rows, columns] += in, rows in_stride apart.
void add_matrix(cudaStream_t stream, float* out, const float* in, int64_t rows, int64_t columns, int64_t in_stride);

// One piece of the sweep; pointers are to its first column and row.
struct Sweep {
  int64_t rows, stride;  // of weight, error and mask
  int size;  // columns of the piece
  float* weight;  // in: compensated for all columns before; out: q
  float* error;  // in: dense w; out: w - q
  uint8_t* mask;  // out: 1 where pruned
  const uint8_t* chosen;  // given mask (may be `mask` itself), or null
  int64_t chosen_stride;
  const float* packed;  // the piece's factor, see invert_pieces
  int strip;  // whole groups of m, at most sweep_strip
  const float* diagonal;  // U_jj
  int n, m;  // m > 0: n of m, else by threshold when nothing is chosen
  const SelectionState* state;
  const unsigned long long* quota;
  const float* grid_scale;  // [rows], or null
  const float* grid_zero;
  float grid_max;
  double* losses;  // [tiles of sweep_rows rows], added to
};
void sweep(cudaStream_t stream, const Sweep& s);

// mask = given != 0
void copy_mask(cudaStream_t stream, uint8_t* mask, const uint8_t* given, int64_t count);
// weight = 0 where the mask is set
void apply_mask(cudaStream_t stream, float* weight, const uint8_t* mask, int64_t count);
void square_roots(cudaStream_t stream, float* out, const float* in, int64_t count);

}  // namespace sparsegpt::cuda
