#include "cpu/attention.h"

#include "cpu/cpu_backend.h"
#include "cpu/rows.h"
#include "cpu/scratch_model.h"

namespace sparsegpt::cpu {

namespace {

// What all heads have in common.
AttentionHead head_of(const Attention& o) {
  AttentionHead h{};
  h.dtype = o.q.dtype;
  h.q_stride = o.q.stride;
  h.k_stride = o.k.stride;
  h.v_stride = o.v.stride;
  h.out_stride = o.out.stride;
  h.heads = o.heads / o.kv_heads;
  h.queries = o.queries();
  h.start = o.start;
  h.head_dim = o.head_dim;
  h.scale = o.scale;
  h.window = o.window;
  h.softcap = o.softcap;
  return h;
}

}  // namespace

void CpuBackend::compute(const Attention& o) {
  const AttentionHead common = head_of(o);
  const int64_t scratch_size = attention_scratch[level_](common);
  const auto scratch = pool_.scratch<float>(pool_.threads() * scratch_size);
  pool_.parallel_for(o.sequences * o.kv_heads, [&](int64_t task, int thread) {
    const int64_t sequence = task / o.kv_heads, head = task % o.kv_heads;
    const int64_t query = sequence * o.queries(), key = sequence * o.keys();
    AttentionHead h = common;
    h.q = element(o.q, query, head * h.heads * h.head_dim);
    h.k = element(o.k, key, head * h.head_dim);
    h.v = element(o.v, key, head * h.head_dim);
    h.out = element(o.out, query, head * h.heads * h.head_dim);
    h.slopes = o.slopes ? o.slopes.data<float>() + head * h.heads : nullptr;
    attend[level_](h, scratch.data() + thread * scratch_size);
  });
}

size_t CpuScratch::bytes(const Attention& o) const {
  return Scratch<float>::bytes(threads_ * attention_scratch[level_](head_of(o)));
}

}  // namespace sparsegpt::cpu
