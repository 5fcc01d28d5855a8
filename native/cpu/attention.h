// Causal attention: what its kernel takes.
#pragma once

#include "core/dtype.h"
#include "cpu/kernel.h"

namespace sparsegpt::cpu {

// The query heads that share one key/value head, in one sequence. Query i sees the keys j <= start + i.
struct AttentionHead {
  DType dtype;            // of q, k, v and out
  const void *q, *k, *v;  // [queries, head_dim], where the `heads` query heads lie side by side; [start + queries, head_dim]
  void* out;  // as q
  int64_t q_stride, k_stride, v_stride, out_stride;
  int64_t heads, queries, start, head_dim;
  float scale;
  int64_t window;  // as in Attention
  float softcap;
  const float* slopes;  // [heads] of ALiBi, or null
  const float* sinks;  // [heads], or null
};

// The gradients of such a head, from that of its output.
struct AttentionGradientHead : AttentionHead {
  const void* dout;  // as out, which is not looked at
  void *dq, *dk, *dv;  // as q, k and v
  int64_t dout_stride, dq_stride, dk_stride, dv_stride;
  float* dsinks;  // [queries, heads], rows dsinks_stride apart, or null
  int64_t dsinks_stride;
};

// The way of few queries, which packs nothing (few_queries.cpp); attend() takes it where this is true. The results differ by rounding.
inline bool has_few_queries(const AttentionHead& head) { return head.queries < 4 && head.dtype != DType::f16; }
SPARSEGPT_KERNEL(few_queries_scratch, int64_t, const AttentionHead& head);
SPARSEGPT_KERNEL(attend_few, void, const AttentionHead& head, float* scratch);

// Floats that attend() needs as scratch. Nothing is read through the head's pointers.
SPARSEGPT_TILED_KERNEL(attention_scratch, int64_t, const AttentionHead& head);
SPARSEGPT_TILED_KERNEL(attend, void, const AttentionHead& head, float* scratch);
SPARSEGPT_TILED_KERNEL(attention_gradient_scratch, int64_t, const AttentionGradientHead& head);
SPARSEGPT_TILED_KERNEL(attend_gradient, void, const AttentionGradientHead& head, float* scratch);

}  // namespace sparsegpt::cpu
