// The functions that are compiled once per instruction-set level (baseline, avx2, avx512, avx512bf16), as a table of pointers.
//
// Everything here works on raw memory of one thread; threads and tensors are the callers' concern. Strides count elements.
#pragma once

#include <cstdint>

#include "core/backend.h"
#include "core/dtype.h"

namespace sparsegpt::cpu {

// The query heads that share one key/value head, in one sequence.
struct AttentionHead {
  DType dtype;  // of q, k, v and out
  const void *q, *k, *v;  // [sequence, head_dim]; the `queries` query heads lie side by side
  void* out;  // as q
  int64_t q_stride, kv_stride, out_stride;
  int64_t queries, sequence, head_dim;
  float scale;
  int64_t window;  // as in AttentionShape
  float softcap;
  const float* slopes;  // [queries] of ALiBi, or null
};

// The solver keeps matrices with their rows along the vector lanes, [column][lane], in tiles of so many rows.
constexpr int64_t lanes = 64;

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
  // What to prune: one of the three.
  const uint8_t* given;  // as weight: where not zero
  const float* scores;  // [B][lanes]: where not above the threshold
  float threshold;
  int n, m;  // n of every m
  const float* grid_scale;  // [rows] quantization grid, or null
  const float* grid_zero;  // [rows]
  float grid_max;
  float* scratch;  // tile_scratch(B) floats
};

constexpr int64_t tile_scratch(int64_t columns) { return 4 * columns * lanes; }

constexpr int64_t factor_columns = 128;  // of a diagonal block of the factorisation
constexpr int64_t factor_scratch = factor_columns * factor_columns;

// What becomes of the sums of a register tile: C = alpha * sums + addend.
struct GemmTile {
  int64_t rows, columns;  // at most mr, nr
  int64_t diagonal;  // only entries j >= i + diagonal are written
  float alpha;
  const float* addend;  // [rows, columns] with rows `addend_stride` apart (0: the same row for all), or null; may be C
  int64_t addend_stride;
  void* c;
  DType dtype;  // of C
  int64_t c_stride;
};

// A part of B in a product that skips the zeros of B: some steps of the depth of at most `sparse_columns` columns.
constexpr int64_t sparse_depth = 64, sparse_pairs_depth = 32, sparse_columns = 64;
struct SparseChunk {
  // Of every entry its value and which slot of A's panel it is multiplied with, with room for an entry for each element and
  // `surplus` more, as whole vectors are stored.
  static constexpr int64_t surplus = 16;
  float* values;
  uint16_t* slots;
  uint32_t* starts;  // [columns + 1]: where the entries of each column begin
};

struct Kernels {
  const char* name;

  // --- GEMM: packed panels and the register tile (BLIS's micro-kernel) ---
  int64_t mr, nr;
  // Packs A or B as float32 into panels of `panel` lanes (mr rows of A, nr columns of B), [panel][unit][lane], where a unit
  // is one step of the depth. Lanes that fill the last panel hold anything.
  void (*pack)(float* packed, int64_t panel, const void* data, DType dtype, int64_t lane_stride, int64_t depth_stride,
               int64_t lanes, int64_t depth);
  // The tile's sums over the depth of A panel · B panel.
  void (*micro)(int64_t units, const float* a, const float* b, const GemmTile& tile);
  // The same for two bfloat16 operands: a unit is two steps of the depth, two elements in the 32 bits of a float, and zero
  // behind an odd depth. Null where the processor has no dot product of bfloat16 pairs.
  void (*pack_pairs)(float* packed, int64_t panel, const void* data, int64_t lane_stride, int64_t depth_stride,
                     int64_t lanes, int64_t depth);
  void (*micro_pairs)(int64_t units, const float* a, const float* b, const GemmTile& tile);

  // --- products that skip the zeros of B; their panels hold `sparse_rows` rows of A, [slot][row] ---
  int64_t sparse_rows;
  // The elements of b, [columns][sparse_depth], that are not zero; a slot is a step of the depth, as pack() makes it.
  void (*compress)(const SparseChunk& out, const float* b, int64_t columns);
  // sums[column][row] += Σ entries of the column · their slots
  void (*multiply_sparse)(const SparseChunk& b, int64_t columns, const float* panel, float* sums);
  // The same for bfloat16 pairs; null as above. An entry is a pair of elements of b, [columns][sparse_pairs_depth], which hold
  // bfloat16 values; four steps of the depth have a slot for each of the 6 pairs that they form, so two of four take one entry.
  void (*compress_pairs)(const SparseChunk& out, const float* b, int64_t columns);
  void (*multiply_sparse_pairs)(const SparseChunk& b, int64_t columns, const float* panel, float* sums);
  // Their slots, from `count` units as pack_pairs() makes them.
  void (*form_pairs)(float* panel, const float* units, int64_t count);
  // Stores sums[column][row]; the tile has at most sparse_rows rows, any number of columns, and no diagonal.
  void (*store_sums)(const float* sums, const GemmTile& tile);

  // --- spans ---
  void (*to_float)(float* out, const void* in, DType dtype, int64_t count);
  void (*from_float)(void* out, DType dtype, const float* in, int64_t count);
  void (*activation)(float* x, int64_t count, Activation kind);
  void (*gate)(float* x, const float* up, int64_t count, Activation kind);
  void (*add)(float* x, const float* y, int64_t count);
  void (*scale)(float* x, float factor, int64_t count);
  void (*softcap)(float* x, float cap, int64_t count);  // x = cap * tanh(x / cap)
  void (*add_squares)(float* sums, const float* x, float scale, int64_t count);
  bool (*all_finite)(const float* x, int64_t count);

  // --- rows ---
  void (*layer_norm)(float* out, const float* x, const float* weight, const float* bias, int64_t count, float eps);
  void (*rms_norm)(float* out, const float* x, const float* weight, int64_t count, float eps);
  void (*rotary)(float* x, const float* cosine, const float* sine, int64_t half, bool interleaved);
  void (*log_sum_exp)(const float* x, int64_t count, float* largest, double* sum);  // sum of exp(x - largest)

  // --- attention ---
  int64_t (*attention_scratch)(int64_t sequence, int64_t head_dim);  // floats needed
  void (*attention)(const AttentionHead& head, float* scratch);

  // out[j][i] = in[i][j] for i < lanes and j < columns
  void (*transpose)(float* out, int64_t out_stride, const float* in, int64_t in_stride, int64_t columns);

  // --- the factorisation H = R Rᵀ; size <= factor_columns, scratch of factor_scratch floats ---
  // Factors a diagonal block [size, size] in place; false when a pivot is not positive. Reads and writes the upper triangle.
  bool (*factor_block)(float* a, int64_t stride, int64_t size, float* scratch);
  // a = a R⁻ᵀ for [rows, size] above a factored block; rows <= lanes; stride is that of a and r.
  void (*solve_panel)(float* a, const float* r, int64_t stride, int64_t rows, int64_t size, float* scratch);

  // --- the column sweep ---
  // scores [B][lanes] = |w| / U_jj with w compensated for all columns before the block; infinite in lanes without a row.
  void (*score)(const BlockTile& tile, float* scores);
  double (*sweep)(const BlockTile& tile);  // returns Σ (w - q)² / U_jj²
  // Writes the bits of the scores, but for the sign, that lie in [low, high], in order; returns how many. out needs room for
  // all.
  int64_t (*collect)(uint32_t* out, const float* scores, int64_t count, uint32_t low, uint32_t high);
};

}  // namespace sparsegpt::cpu
