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

// Some rows of one column block of the SparseGPT solver; B = block.
struct SweepTile {
  int64_t rows;  // at most sweep_rows
  int64_t block;  // columns of the block
  const float* weights;  // [rows, B]: compensated for all columns before the block
  const float* inverse_factor;  // [B, B]: U_BB, upper triangular
  const uint8_t* chosen;  // [rows, B] mask with rows `chosen_stride` apart, or null for n:m
  int64_t chosen_stride;
  int n, m;  // used when chosen is null
  const float* grid_scale;  // [rows] quantization grid, or null
  const float* grid_zero;  // [rows]
  float grid_max;
  float* pruned;  // out: q
  float* dense;  // in: the dense weights w, out: w - q
  uint8_t* mask;  // out: 1 where pruned
  int64_t stride;  // of pruned, dense and mask
  float* scratch;  // sweep_scratch(B) floats
};

constexpr int64_t sweep_rows = 64;
constexpr int64_t sweep_scratch(int64_t block) { return 3 * block * sweep_rows; }

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

  // --- the column sweep; returns Σ (w - q)² / U_jj² ---
  double (*sweep)(const SweepTile& tile);
};

}  // namespace sparsegpt::cpu
