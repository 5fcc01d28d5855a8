#include "cpu/attention.h"

#include <cstring>

#include "cpu/cpu_backend.h"
#include "cpu/rows.h"
#include "cpu/scratch_model.h"

namespace sparsegpt::cpu {

namespace {

// What all heads have in common.
template <typename Operation>
void describe_heads(AttentionHead& h, const Operation& o) {
  h.dtype = o.q.dtype;
  h.q_stride = o.q.stride;
  h.k_stride = o.k.stride;
  h.v_stride = o.v.stride;
  h.heads = o.heads / o.kv_heads;
  h.queries = o.queries();
  h.start = o.start;
  h.head_dim = o.head_dim;
  h.scale = o.scale;
  h.window = o.window;
  h.softcap = o.softcap;
}

AttentionHead head_of(const Attention& o) {
  AttentionHead h{};
  describe_heads(h, o);
  h.out_stride = o.out.stride;
  return h;
}

AttentionGradientHead head_of(const AttentionGradient& o) {
  AttentionGradientHead h{};
  describe_heads(h, o);
  h.dout_stride = o.dout.stride;
  h.dq_stride = o.dq.stride;
  h.dk_stride = o.dk.stride;
  h.dv_stride = o.dv.stride;
  h.dsinks_stride = o.heads;
  return h;
}

// body(head, query, column of q, key, column of k, thread) for every sequence and key/value head: the place of its first query and key.
template <typename Operation, typename Head, typename Body>
void for_heads(ThreadPool& pool, const Operation& o, const Head& common, const Body& body) {
  pool.parallel_for(o.sequences * o.kv_heads, [&](int64_t task, int thread) {
    const int64_t sequence = task / o.kv_heads, shared = task % o.kv_heads;
    const int64_t query = sequence * o.queries(), key = sequence * o.keys();
    const int64_t q_column = shared * common.heads * o.head_dim, k_column = shared * o.head_dim;
    Head h = common;
    h.q = element(o.q, query, q_column);
    h.k = element(o.k, key, k_column);
    h.v = element(o.v, key, k_column);
    h.slopes = o.slopes ? o.slopes.template data<float>() + shared * common.heads : nullptr;
    h.sinks = o.sinks ? o.sinks.template data<float>() + shared * common.heads : nullptr;
    body(h, query, q_column, key, k_column, thread);
  });
}

}  // namespace

void CpuBackend::compute(const Attention& o) {
  const AttentionHead common = head_of(o);
  const int64_t scratch_size = attention_scratch[level_](common);
  const auto scratch = pool_.scratch<float>(pool_.threads() * scratch_size);
  for_heads(pool_, o, common, [&](AttentionHead& h, int64_t query, int64_t q_column, int64_t, int64_t, int thread) {
    h.out = element(o.out, query, q_column);
    attend[level_](h, scratch.data() + thread * scratch_size);
  });
}

size_t CpuScratch::bytes(const Attention& o) const {
  return Scratch<float>::bytes(threads_ * attention_scratch[level_](head_of(o)));
}

void CpuBackend::compute(const AttentionGradient& o) {
  const AttentionGradientHead common = head_of(o);
  const int64_t scratch_size = attention_gradient_scratch[level_](common);
  const auto scratch = pool_.scratch<float>(pool_.threads() * scratch_size);
  for_heads(pool_, o, common,
            [&](AttentionGradientHead& h, int64_t query, int64_t q_column, int64_t key, int64_t k_column, int thread) {
              h.dout = element(o.dout, query, q_column);
              h.dq = element(o.dq, query, q_column);
              h.dk = element(o.dk, key, k_column);
              h.dv = element(o.dv, key, k_column);
              h.dsinks = o.dsinks ? o.dsinks.data<float>() + query * o.heads + q_column / o.head_dim : nullptr;
              attend_gradient[level_](h, scratch.data() + thread * scratch_size);
              // No query sees the keys behind the last one.
              const auto bytes = static_cast<size_t>(o.head_dim) * dtype_size(o.q.dtype);
              for (int64_t i = o.start + o.queries(); i < o.keys(); ++i)
                for (const Tensor* gradient : {&o.dk, &o.dv}) std::memset(element(*gradient, key + i, k_column), 0, bytes);
            });
}

size_t CpuScratch::bytes(const AttentionGradient& o) const {
  return Scratch<float>::bytes(threads_ * attention_gradient_scratch[level_](head_of(o)));
}

}  // namespace sparsegpt::cpu
