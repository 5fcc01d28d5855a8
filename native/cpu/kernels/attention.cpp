// Causal attention, fused: for every mr queries the scores of their keys are formed, turned to probabilities and multiplied
// with V before the next queries are looked at, so the score matrix never exists. Both products use the GEMM's register tile.
#include "cpu/kernels/level.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// exp(x - max) in place over the scores [first, count); zeroes those before them and up to `padded`; returns the sum.
float soften(float* x, int64_t first, int64_t count, int64_t padded) {
  for (int64_t i = 0; i < first; ++i) x[i] = -1e30f;
  for (int64_t i = count; i < padded; ++i) x[i] = -1e30f;
  vf top = load(x);
  for (int64_t i = width; i < padded; i += width) top = vmax(top, load(x + i));
  const float largest = horizontal_max(top);
  vf sums = {};
  for (int64_t i = 0; i < padded; i += width) {
    const vf e = vexp(load(x + i) - largest);
    store(x + i, e);
    sums += e;
  }
  return horizontal_sum(sums);
}

}  // namespace

int64_t attention_scratch(int64_t sequence, int64_t head_dim) {
  const int64_t keys = round_up(sequence, nr), features = round_up(head_dim, nr);
  return keys * head_dim + features * sequence + mr * (head_dim + 2 * keys + features);
}

void attention(const AttentionHead& h, float* scratch) {
  const int64_t bytes = static_cast<int64_t>(dtype_size(h.dtype));
  const int64_t keys_padded = round_up(h.sequence, nr), features = round_up(h.head_dim, nr);
  float* k_panels = scratch;  // Kᵀ: [keys / nr][head_dim][nr]
  float* v_panels = k_panels + keys_padded * h.head_dim;  // V: [features / nr][sequence][nr]
  float* q_panel = v_panels + features * h.sequence;  // [head_dim][mr]
  float* scores = q_panel + mr * h.head_dim;  // [mr][keys]
  float* p_panel = scores + mr * keys_padded;  // [keys][mr]
  float* output = p_panel + mr * keys_padded;  // [mr][features]

  pack(k_panels, nr, h.k, h.dtype, h.kv_stride, 1, h.sequence, h.head_dim);
  pack(v_panels, nr, h.v, h.dtype, 1, h.kv_stride, h.head_dim, h.sequence);
  // Whole tiles: scores of keys that do not exist are overwritten, features that do not exist are not read.
  GemmTile score{mr, nr, -mr, h.scale, nullptr, 0, nullptr, DType::f32, keys_padded};
  GemmTile mix{mr, nr, -mr, 1, nullptr, 0, nullptr, DType::f32, features};

  for (int64_t head = 0; head < h.queries; ++head) {
    const char* q = static_cast<const char*>(h.q) + head * h.head_dim * bytes;
    char* out = static_cast<char*>(h.out) + head * h.head_dim * bytes;
    for (int64_t q0 = 0; q0 < h.sequence; q0 += mr) {
      const int64_t count = h.sequence - q0 < mr ? h.sequence - q0 : mr;
      const int64_t keys = q0 + count;
      // The first key that any of the queries sees, from a whole panel on.
      const int64_t k0 = h.window > 0 && q0 >= h.window ? (q0 - h.window + 1) / nr * nr : 0;
      pack(q_panel, mr, q + q0 * h.q_stride * bytes, h.dtype, h.q_stride, 1, count, h.head_dim);
      for (int64_t j = k0; j < keys; j += nr) {
        score.c = scores + j;
        micro(h.head_dim, q_panel, k_panels + j * h.head_dim, score);
      }
      float sums[mr];
      const int64_t padded = round_up(keys, width) - k0;
      for (int64_t i = 0; i < count; ++i) {
        float* row = scores + i * keys_padded + k0;
        const int64_t seen = q0 + i + 1 - k0;  // of the keys from k0 on
        const int64_t first = h.window > 0 && seen > h.window ? seen - h.window : 0;
        if (h.softcap > 0) softcap(row + first, h.softcap, seen - first);
        if (h.slopes)
          for (int64_t j = first; j < seen; ++j) row[j] += h.slopes[head] * static_cast<float>(j + 1 - seen);
        sums[i] = soften(row, first, seen, padded);
      }
      pack(p_panel, mr, scores + k0, DType::f32, keys_padded, 1, count, keys - k0);
      for (int64_t j = 0; j < features; j += nr) {
        mix.c = output + j;
        micro(keys - k0, p_panel, v_panels + j * h.sequence + k0 * nr, mix);
      }
      for (int64_t i = 0; i < count; ++i) {
        float* row = output + i * features;
        const float inverse = 1.0f / sums[i];
        for (int64_t d = 0; d < h.head_dim; ++d) row[d] *= inverse;
        span_from_float(out + (q0 + i) * h.out_stride * bytes, h.dtype, row, h.head_dim);
      }
    }
  }
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
