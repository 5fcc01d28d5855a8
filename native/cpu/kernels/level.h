// The kernels of one instruction-set level, for each other and for its table. See kernels.h for what they compute.
#pragma once

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/vec.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

// The register tile of the GEMM: mr * 2 accumulators, 2 registers for B, 1 broadcast of A; there are 32 registers with
// AVX-512 and 16 otherwise.
constexpr int64_t mr = width == 16 ? 12 : width == 8 ? 6 : 4;
constexpr int64_t nr = 2 * width;

// gemm.cpp
void pack(float* packed, int64_t panel, const void* data, DType dtype, int64_t lane_stride, int64_t depth_stride,
          int64_t lanes, int64_t depth);
void micro(int64_t units, const float* a, const float* b, const GemmTile& tile);
#if defined(__AVX512BF16__)
void pack_pairs(float* packed, int64_t panel, const void* data, int64_t lane_stride, int64_t depth_stride, int64_t lanes,
                int64_t depth);
void micro_pairs(int64_t units, const float* a, const float* b, const GemmTile& tile);
#endif

// sparse.cpp
constexpr int64_t sparse_rows = 8 * width;
void compress(const SparseChunk& out, const float* b, int64_t columns);
void multiply_sparse(const SparseChunk& b, int64_t columns, const float* panel, float* sums);
#if defined(__AVX512BF16__)
void compress_pairs(const SparseChunk& out, const float* b, int64_t columns);
void multiply_sparse_pairs(const SparseChunk& b, int64_t columns, const float* panel, float* sums);
void form_pairs(float* panel, const float* units, int64_t count);
#endif
void store_sums(const float* sums, const GemmTile& tile);

// spans.cpp
void to_float(float* out, const void* in, DType dtype, int64_t count);
void from_float(void* out, DType dtype, const float* in, int64_t count);
void activation(float* x, int64_t count, Activation kind);
void gate(float* x, const float* up, int64_t count, Activation kind);
void add(float* x, const float* y, int64_t count);
void scale(float* x, float factor, int64_t count);
void softcap(float* x, float cap, int64_t count);
void add_squares(float* sums, const float* x, float scale, int64_t count);
bool all_finite(const float* x, int64_t count);

// rows.cpp
void layer_norm(float* out, const float* x, const float* weight, const float* bias, int64_t count, float eps);
void rms_norm(float* out, const float* x, const float* weight, int64_t count, float eps);
void rotary(float* x, const float* cosine, const float* sine, int64_t half, bool interleaved);
void log_sum_exp(const float* x, int64_t count, float* largest, double* sum);

// attention.cpp
int64_t attention_scratch(int64_t sequence, int64_t head_dim);
void attention(const AttentionHead& head, float* scratch);

// triangle.cpp
void transpose(float* out, int64_t out_stride, const float* in, int64_t in_stride, int64_t columns);
bool factor_block(float* a, int64_t stride, int64_t size, float* scratch);
void solve_panel(float* a, const float* r, int64_t stride, int64_t rows, int64_t size, float* scratch);

// sweep.cpp
void score(const BlockTile& tile, float* scores);
double sweep(const BlockTile& tile);
int64_t collect(uint32_t* out, const float* scores, int64_t count, uint32_t low, uint32_t high);

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
