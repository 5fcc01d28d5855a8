// Causal attention, fused: for every mr queries the scores of their keys are formed, turned to probabilities and multiplied
// with V before the next queries are looked at, so the score matrix never exists. Both products use the GEMM's register tile.
#include "cpu/attention.h"

#include "cpu/kernels/tile.h"
#include "cpu/spans.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// --- what both products multiply -----------------------------------------------------------------------------------------
//
// An arithmetic packs q, k and v, multiplies panels, turns a row's scores to probabilities and packs those:
//   units(depth)              units of a panel, as in gemm.h
//   soften(x, count, top)     exp(x - top) in place for pack_probabilities; count is a multiple of nr; returns the sum

struct Floats {
  static int64_t units(int64_t depth) { return depth; }
  static void pack_input(float* packed, int64_t panel, const void* data, DType dtype, int64_t lane_stride,
                         int64_t depth_stride, int64_t lanes, int64_t depth) {
    pack(packed, panel, data, dtype, lane_stride, depth_stride, lanes, depth);
  }
  static void multiply(int64_t units, const float* a, const float* b, const GemmTile& tile) { micro(units, a, b, tile); }
  static float soften(float* x, int64_t count, float top) {
    vf sums = {};
    for (int64_t i = 0; i < count; i += width) {
      const vf e = vexp(load(x + i) - top);
      store(x + i, e);
      sums += e;
    }
    return horizontal_sum(sums);
  }
  static void pack_probabilities(float* packed, const float* rows, int64_t stride, int64_t lanes, int64_t depth) {
    pack(packed, mr, rows, DType::f32, stride, 1, lanes, depth);
  }
};

#if defined(__AVX512BF16__)
// Products of bfloat16 are exact in float32, so the scores lose nothing. The probabilities are rounded to bfloat16 and their
// sum is that of the rounded ones: a mean of V remains a mean.
struct Pairs {
  static int64_t units(int64_t depth) { return (depth + 1) / 2; }
  static void pack_input(float* packed, int64_t panel, const void* data, DType, int64_t lane_stride, int64_t depth_stride,
                         int64_t lanes, int64_t depth) {
    pack_pairs(packed, panel, data, lane_stride, depth_stride, lanes, depth);
  }
  static void multiply(int64_t units, const float* a, const float* b, const GemmTile& tile) {
    micro_pairs(units, a, b, tile);
  }
  // The rounded elements fill the first half of the row.
  static float soften(float* x, int64_t count, float top) {
    const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    __m512 sums = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += 2 * width) {
      const vf low = vexp(load(x + i) - top), high = vexp(load(x + i + width) - top);
      const __m512bh rounded = _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
      _mm512_storeu_si512(x + i / 2, (__m512i)rounded);
      sums = _mm512_dpbf16_ps(sums, rounded, ones);
    }
    return horizontal_sum((vf)sums);
  }
  static void pack_probabilities(float* packed, const float* rows, int64_t stride, int64_t lanes, int64_t depth) {
    pack_pairs(packed, mr, rows, 2 * stride, 1, lanes, depth);
  }
};
#endif

// Makes the probabilities of the scores [first, count) zero elsewhere up to `padded`, a multiple of nr; returns the sum.
template <typename Arithmetic>
float softmax(float* x, int64_t first, int64_t count, int64_t padded) {
  for (int64_t i = 0; i < first; ++i) x[i] = -1e30f;
  for (int64_t i = count; i < padded; ++i) x[i] = -1e30f;
  vf top = load(x);
  for (int64_t i = width; i < padded; i += width) top = vmax(top, load(x + i));
  return Arithmetic::soften(x, padded, horizontal_max(top));
}

// The keys that any of a head's queries sees, from a whole panel on, so that sums are made in the same order whatever queries a
// head has.
int64_t first_key(const AttentionHead& h) {
  return h.window > 0 && h.start >= h.window ? (h.start - h.window + 1) / nr * nr : 0;
}

template <typename Arithmetic>
void attend_head(const AttentionHead& h, float* scratch) {
  const int64_t bytes = static_cast<int64_t>(dtype_size(h.dtype));
  const int64_t skipped = first_key(h), start = h.start - skipped, all_keys = start + h.queries;
  const int64_t keys_padded = round_up(all_keys, nr), features = round_up(h.head_dim, nr);
  const int64_t depth = Arithmetic::units(h.head_dim), key_units = Arithmetic::units(all_keys);  // in units
  float* k_panels = scratch;  // Kᵀ: [keys / nr][depth][nr]
  float* v_panels = k_panels + keys_padded * depth;  // V: [features / nr][key_units][nr]
  float* q_panel = v_panels + features * key_units;  // [depth][mr]
  float* scores = q_panel + mr * depth;  // [mr][keys]
  float* p_panel = scores + mr * keys_padded;  // [units of keys][mr]
  float* output = p_panel + mr * Arithmetic::units(keys_padded);  // [mr][features]

  const char* k = static_cast<const char*>(h.k) + skipped * h.k_stride * bytes;
  const char* v = static_cast<const char*>(h.v) + skipped * h.v_stride * bytes;
  Arithmetic::pack_input(k_panels, nr, k, h.dtype, h.k_stride, 1, all_keys, h.head_dim);
  Arithmetic::pack_input(v_panels, nr, v, h.dtype, 1, h.v_stride, h.head_dim, all_keys);
  // Whole tiles: scores of keys that do not exist are overwritten, features that do not exist are not read.
  GemmTile score{mr, nr, -mr, h.scale, nullptr, 0, nullptr, DType::f32, keys_padded};
  GemmTile mix{mr, nr, -mr, 1, nullptr, 0, nullptr, DType::f32, features};

  for (int64_t head = 0; head < h.heads; ++head) {
    const char* q = static_cast<const char*>(h.q) + head * h.head_dim * bytes;
    char* out = static_cast<char*>(h.out) + head * h.head_dim * bytes;
    for (int64_t q0 = 0; q0 < h.queries; q0 += mr) {
      const int64_t count = h.queries - q0 < mr ? h.queries - q0 : mr, at = start + q0;
      // The keys that any of these queries sees.
      const int64_t k0 = h.window > 0 && at >= h.window ? (at - h.window + 1) / nr * nr : 0;
      const int64_t keys = at + count - k0, padded = round_up(keys, nr);
      Arithmetic::pack_input(q_panel, mr, q + q0 * h.q_stride * bytes, h.dtype, h.q_stride, 1, count, h.head_dim);
      for (int64_t j = 0; j < keys; j += nr) {
        score.c = scores + j;
        Arithmetic::multiply(depth, q_panel, k_panels + (k0 + j) * depth, score);
      }
      float sums[mr];
      for (int64_t i = 0; i < count; ++i) {
        float* row = scores + i * keys_padded;
        const int64_t seen = at + i + 1 - k0;
        const int64_t first = h.window > 0 && seen > h.window ? seen - h.window : 0;
        if (h.softcap > 0) softcap(row + first, h.softcap, seen - first);
        if (h.slopes)
          for (int64_t j = first; j < seen; ++j) row[j] += h.slopes[head] * static_cast<float>(j + 1 - seen);
        sums[i] = softmax<Arithmetic>(row, first, seen, padded);
      }
      Arithmetic::pack_probabilities(p_panel, scores, keys_padded, count, keys);
      for (int64_t j = 0; j < features; j += nr) {
        mix.c = output + j;
        Arithmetic::multiply(Arithmetic::units(keys), p_panel, v_panels + j * key_units + Arithmetic::units(k0) * nr, mix);
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

}  // namespace

int64_t attention_scratch(const AttentionHead& h) {
  const int64_t all_keys = h.start + h.queries - first_key(h), padded = round_up(all_keys, nr);
  const int64_t features = round_up(h.head_dim, nr);
  return padded * h.head_dim + features * all_keys + mr * (h.head_dim + 2 * padded + features);
}

void attend(const AttentionHead& head, float* scratch) {
#if defined(__AVX512BF16__)
  if (head.dtype == DType::bf16) return attend_head<Pairs>(head, scratch);
#endif
  attend_head<Floats>(head, scratch);
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
