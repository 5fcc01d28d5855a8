// Causal attention, fused: for every few queries the scores of their keys are formed, turned to probabilities and multiplied
// with V before the next queries are looked at, so the score matrix never exists. Both products use the GEMM's register tile.
#pragma once

#include "cpu/attention.h"
#include "cpu/kernels/tile.h"
#include "cpu/spans.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// --- what both products multiply -----------------------------------------------------------------------------------------
//
// An arithmetic packs q, k and v, multiplies panels, turns a row's scores to probabilities and packs those:
//   rows, columns             of the register tile
//   block_queries             the depth of the products that make dk and dv
//   units(depth)              units of a panel, as in gemm.h
//   pack_input(packed, of_a, ...)   of_a: as rows of A, else as columns of B
//   soften(x, count, top)     exp(x - top) in place for pack_probabilities; count is a multiple of columns; returns the sum
//   round_row(x, count)       makes any row what soften() leaves: float32, or bfloat16 in its first half
//   pack_probabilities, pack_columns   such rows as rows of A, and their columns from `first` on as rows of A

#if defined(__AVX512BF16__)
// exp(x - top), rounded to bfloat16; the elements fill the first half of the row. Returns their sum.
static inline float soften_to_bfloat(float* x, int64_t count, float top) {
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
#endif

// Makes the probabilities of the scores [first, count) zero elsewhere up to `padded`, a multiple of Arithmetic::columns; returns the sum, in
// which the head's sink counts.
template <typename Arithmetic>
float softmax(const AttentionHead& h, int64_t head, float* x, int64_t first, int64_t count, int64_t padded) {
  for (int64_t i = 0; i < first; ++i) x[i] = -1e30f;
  for (int64_t i = count; i < padded; ++i) x[i] = -1e30f;
  vf top = load(x);
  for (int64_t i = width; i < padded; i += width) top = vmax(top, load(x + i));
  const float largest = horizontal_max(top);
  if (h.sinks == nullptr) return Arithmetic::soften(x, padded, largest);
  const float sink = h.sinks[head], shared = sink > largest ? sink : largest;
  return Arithmetic::soften(x, padded, shared) + vexp(broadcast(sink - shared))[0];
}

// The keys that any of a head's queries sees, from a whole panel on, so that sums are made in the same order whatever queries a
// head has.
template <typename Arithmetic>
int64_t first_key(const AttentionHead& h) {
  return h.window > 0 && h.start >= h.window ? (h.start - h.window + 1) / Arithmetic::columns * Arithmetic::columns : 0;
}

template <typename Arithmetic>
int64_t attention_floats(const AttentionHead& h) {
  const int64_t all_keys = h.start + h.queries - first_key<Arithmetic>(h), padded = round_up(all_keys, Arithmetic::columns);
  const int64_t features = round_up(h.head_dim, Arithmetic::columns), depth = Arithmetic::units(h.head_dim);
  return padded * depth + features * Arithmetic::units(all_keys) +
         Arithmetic::rows * (depth + padded + Arithmetic::units(padded) + features);
}

template <typename Arithmetic>
void attend_head(const AttentionHead& h, float* scratch) {
  const int64_t bytes = static_cast<int64_t>(dtype_size(h.dtype));
  const int64_t skipped = first_key<Arithmetic>(h), start = h.start - skipped, all_keys = start + h.queries;
  const int64_t keys_padded = round_up(all_keys, Arithmetic::columns), features = round_up(h.head_dim, Arithmetic::columns);
  const int64_t depth = Arithmetic::units(h.head_dim), key_units = Arithmetic::units(all_keys);  // in units
  float* k_panels = scratch;  // Kᵀ: [keys / Arithmetic::columns][depth][Arithmetic::columns]
  float* v_panels = k_panels + keys_padded * depth;  // V: [features / Arithmetic::columns][key_units][Arithmetic::columns]
  float* q_panel = v_panels + features * key_units;  // [depth][Arithmetic::rows]
  float* scores = q_panel + Arithmetic::rows * depth;  // [Arithmetic::rows][keys]
  float* p_panel = scores + Arithmetic::rows * keys_padded;  // [units of keys][Arithmetic::rows]
  float* output = p_panel + Arithmetic::rows * Arithmetic::units(keys_padded);  // [Arithmetic::rows][features]

  const char* k = static_cast<const char*>(h.k) + skipped * h.k_stride * bytes;
  const char* v = static_cast<const char*>(h.v) + skipped * h.v_stride * bytes;
  Arithmetic::pack_input(k_panels, false, k, h.dtype, h.k_stride, 1, all_keys, h.head_dim);
  Arithmetic::pack_input(v_panels, false, v, h.dtype, 1, h.v_stride, h.head_dim, all_keys);
  // Whole tiles: scores of keys that do not exist are overwritten, features that do not exist are not read.
  GemmTile score{Arithmetic::rows, Arithmetic::columns, -Arithmetic::rows, h.scale, nullptr, 0,
                 nullptr,          DType::f32,          keys_padded};
  GemmTile mix{Arithmetic::rows, Arithmetic::columns, -Arithmetic::rows, 1, nullptr, 0, nullptr, DType::f32, features};

  for (int64_t head = 0; head < h.heads; ++head) {
    const char* q = static_cast<const char*>(h.q) + head * h.head_dim * bytes;
    char* out = static_cast<char*>(h.out) + head * h.head_dim * bytes;
    for (int64_t q0 = 0; q0 < h.queries; q0 += Arithmetic::rows) {
      const int64_t count = h.queries - q0 < Arithmetic::rows ? h.queries - q0 : Arithmetic::rows, at = start + q0;
      // The keys that any of these queries sees.
      const int64_t k0 =
          h.window > 0 && at >= h.window ? (at - h.window + 1) / Arithmetic::columns * Arithmetic::columns : 0;
      const int64_t keys = at + count - k0, padded = round_up(keys, Arithmetic::columns);
      Arithmetic::pack_input(q_panel, true, q + q0 * h.q_stride * bytes, h.dtype, h.q_stride, 1, count, h.head_dim);
      for (int64_t j = 0; j < keys; j += Arithmetic::columns) {
        score.c = scores + j;
        Arithmetic::multiply(depth, q_panel, k_panels + (k0 + j) * depth, score);
      }
      float sums[Arithmetic::rows];
      for (int64_t i = 0; i < count; ++i) {
        float* row = scores + i * keys_padded;
        const int64_t seen = at + i + 1 - k0;
        const int64_t first = h.window > 0 && seen > h.window ? seen - h.window : 0;
        if (h.softcap > 0) softcap(row + first, h.softcap, seen - first);
        if (h.slopes)
          for (int64_t j = first; j < seen; ++j) row[j] += h.slopes[head] * static_cast<float>(j + 1 - seen);
        sums[i] = softmax<Arithmetic>(h, head, row, first, seen, padded);
      }
      Arithmetic::pack_probabilities(p_panel, scores, keys_padded, count, keys);
      for (int64_t j = 0; j < features; j += Arithmetic::columns) {
        mix.c = output + j;
        Arithmetic::multiply(Arithmetic::units(keys), p_panel,
                             v_panels + j * key_units + Arithmetic::units(k0) * Arithmetic::columns, mix);
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

// --- gradients ----------------------------------------------------------------------------------------------------------
//
// With P = softmax(S), S = q kᵀ · scale capped and biased, and D = the sum over the keys of P · dP:
//   dP = dout vᵀ;  dS = P · (dP - D), times the cap's derivative;  dq = scale dS k;  dk = scale dSᵀ q;  dv = Pᵀ dout.
// For every block of queries the rows of S and dP are formed once more.

// C [m, n] = alpha · A · B (+ C) of packed panels, float32 rows `stride` apart; panels of B have `b_units` units.
template <typename Arithmetic>
void multiply_block(int64_t m, int64_t n, int64_t units, float alpha, const float* a, const float* b, int64_t b_units,
                    float* c, int64_t stride, bool accumulate) {
  for (int64_t j = 0; j < n; j += Arithmetic::columns) {
    for (int64_t i = 0; i < m; i += Arithmetic::rows) {
      float* tile = c + i * stride + j;
      const int64_t rows = m - i < Arithmetic::rows ? m - i : Arithmetic::rows,
                    columns = n - j < Arithmetic::columns ? n - j : Arithmetic::columns;
      Arithmetic::multiply(
          units, a + i * units, b + j * b_units,
          GemmTile{rows, columns, -Arithmetic::rows, alpha, accumulate ? tile : nullptr, stride, tile, DType::f32, stride});
    }
  }
}

template <typename Arithmetic>
struct GradientSizes {
  explicit GradientSizes(const AttentionHead& h)
      : skipped(first_key<Arithmetic>(h)),
        start(h.start - skipped),
        keys(start + h.queries),
        keys_padded(round_up(keys, Arithmetic::columns)),
        features(round_up(h.head_dim, Arithmetic::columns)) {}
  int64_t skipped, start, keys, keys_padded, features;
};

// Turns a query's scores [first, seen) into probabilities and their gradients into those of the scores before the cap; zero
// elsewhere up to `padded`. Returns the gradient of the sink.
float gradient_row(const AttentionHead& h, int64_t head, float* row, float* slope, int64_t first, int64_t seen,
                   int64_t padded) {
  if (h.softcap > 0) softcap(row + first, h.softcap, seen - first);
  // The cap's derivative, 1 - (s / cap)², is taken before the bias of ALiBi is added.
  const float inverse_cap = h.softcap > 0 ? 1.0f / h.softcap : 0.0f;
  const float bias = h.slopes != nullptr ? h.slopes[head] : 0.0f;
  vf lane = {};
  for (int64_t i = 0; i < width; ++i) lane[i] = static_cast<float>(i);
  const auto hidden = [&](int64_t i) {
    const vf key = lane + static_cast<float>(i);
    return (key < static_cast<float>(first)) | (key >= static_cast<float>(seen));
  };
  const auto biased = [&](int64_t i) {
    const vf score = load(row + i) + bias * (lane + static_cast<float>(i + 1 - seen));
    return select(hidden(i), broadcast(-1e30f), score);
  };
  vf top = biased(0);
  for (int64_t i = width; i < padded; i += width) top = vmax(top, biased(i));
  float largest = horizontal_max(top), sunk = 0;
  if (h.sinks != nullptr) {
    if (h.sinks[head] > largest) largest = h.sinks[head];
    sunk = vexp(broadcast(h.sinks[head] - largest))[0];
  }
  vf sums = {}, products = {};
  for (int64_t i = 0; i < padded; i += width) {
    const vf e = vexp(biased(i) - largest);
    sums += e;
    products += e * select(hidden(i), vf{}, load(slope + i));
  }
  const float inverse = 1.0f / (horizontal_sum(sums) + sunk), mean = horizontal_sum(products) * inverse;
  for (int64_t i = 0; i < padded; i += width) {
    const vf relative = load(row + i) * inverse_cap, share = vexp(biased(i) - largest) * inverse;
    store(row + i, share);
    const vf gradient = share * (load(slope + i) - mean) * (1.0f - relative * relative);
    store(slope + i, select(hidden(i), vf{}, gradient));
  }
  return -sunk * inverse * mean;
}

template <typename Arithmetic>
int64_t gradient_floats(const AttentionHead& h) {
  const GradientSizes<Arithmetic> s(h);
  const int64_t depth = Arithmetic::units(h.head_dim), key_units = Arithmetic::units(s.keys);
  return 2 * s.keys_padded * depth + s.features * key_units +  // kᵀ, vᵀ, k
         2 * s.keys * h.head_dim +  // dk, dv
         2 * Arithmetic::block_queries * depth +
         2 * s.features * Arithmetic::block_queries +  // q and dout, as rows and as columns
         2 * Arithmetic::block_queries * s.keys_padded +  // P, dS
         Arithmetic::rows * round_up(s.keys_padded, 2) +
         Arithmetic::rows * Arithmetic::block_queries +  // a panel of dS, of dSᵀ or Pᵀ
         Arithmetic::block_queries * h.head_dim;  // dq
}

template <typename Arithmetic>
void attend_gradient_head(const AttentionGradientHead& h, float* scratch) {
  const GradientSizes<Arithmetic> s(h);
  const auto bytes = static_cast<int64_t>(dtype_size(h.dtype));
  const int64_t dim = h.head_dim, depth = Arithmetic::units(dim), key_units = Arithmetic::units(s.keys);
  const int64_t stride = s.keys_padded;
  float* next = scratch;
  const auto take = [&](int64_t count) {
    float* memory = next;
    next += count;
    return memory;
  };
  float* kt_panels = take(s.keys_padded * depth);  // [keys / Arithmetic::columns][depth][Arithmetic::columns]
  float* vt_panels = take(s.keys_padded * depth);
  float* k_panels = take(s.features * key_units);  // [features / Arithmetic::columns][key_units][Arithmetic::columns]
  float *dk = take(s.keys * dim), *dv = take(s.keys * dim);
  float *q_rows = take(Arithmetic::block_queries * depth), *dout_rows = take(Arithmetic::block_queries * depth);
  float *q_columns = take(s.features * Arithmetic::block_queries),
        *dout_columns = take(s.features * Arithmetic::block_queries);
  float *p = take(Arithmetic::block_queries * stride), *ds = take(Arithmetic::block_queries * stride);
  float *row_panel = take(Arithmetic::rows * round_up(stride, 2)),
        *column_panel = take(Arithmetic::rows * Arithmetic::block_queries);
  float* dq = take(Arithmetic::block_queries * dim);

  const char* k = static_cast<const char*>(h.k) + s.skipped * h.k_stride * bytes;
  const char* v = static_cast<const char*>(h.v) + s.skipped * h.v_stride * bytes;
  Arithmetic::pack_input(kt_panels, false, k, h.dtype, h.k_stride, 1, s.keys, dim);
  Arithmetic::pack_input(vt_panels, false, v, h.dtype, h.v_stride, 1, s.keys, dim);
  Arithmetic::pack_input(k_panels, false, k, h.dtype, 1, h.k_stride, dim, s.keys);
  for (int64_t i = 0; i < s.keys * dim; ++i) dk[i] = dv[i] = 0;

  for (int64_t head = 0; head < h.heads; ++head) {
    const char* q = static_cast<const char*>(h.q) + head * dim * bytes;
    const char* dout = static_cast<const char*>(h.dout) + head * dim * bytes;
    for (int64_t q0 = 0; q0 < h.queries; q0 += Arithmetic::block_queries) {
      const int64_t count = h.queries - q0 < Arithmetic::block_queries ? h.queries - q0 : Arithmetic::block_queries,
                    at = s.start + q0;
      const int64_t k0 =
          h.window > 0 && at >= h.window ? (at - h.window + 1) / Arithmetic::columns * Arithmetic::columns : 0;
      const int64_t keys = at + count - k0, padded = round_up(keys, Arithmetic::columns), units = Arithmetic::units(count);
      const char *q_block = q + q0 * h.q_stride * bytes, *dout_block = dout + q0 * h.dout_stride * bytes;
      Arithmetic::pack_input(q_rows, true, q_block, h.dtype, h.q_stride, 1, count, dim);
      Arithmetic::pack_input(dout_rows, true, dout_block, h.dtype, h.dout_stride, 1, count, dim);
      Arithmetic::pack_input(q_columns, false, q_block, h.dtype, 1, h.q_stride, dim, count);
      Arithmetic::pack_input(dout_columns, false, dout_block, h.dtype, 1, h.dout_stride, dim, count);
      multiply_block<Arithmetic>(count, padded, depth, h.scale, q_rows, kt_panels + k0 * depth, depth, p, stride, false);
      multiply_block<Arithmetic>(count, padded, depth, 1, dout_rows, vt_panels + k0 * depth, depth, ds, stride, false);
      for (int64_t i = 0; i < count; ++i) {
        float *row = p + i * stride, *slope = ds + i * stride;
        const int64_t seen = at + i + 1 - k0;
        const int64_t first = h.window > 0 && seen > h.window ? seen - h.window : 0;
        const float dsink = gradient_row(h, head, row, slope, first, seen, padded);
        if (h.dsinks != nullptr) h.dsinks[(q0 + i) * h.dsinks_stride + head] = dsink;
        Arithmetic::round_row(row, padded);
        Arithmetic::round_row(slope, padded);
      }
      // dq, by panels of queries.
      for (int64_t i = 0; i < count; i += Arithmetic::rows) {
        const int64_t rows = count - i < Arithmetic::rows ? count - i : Arithmetic::rows;
        Arithmetic::pack_probabilities(row_panel, ds + i * stride, stride, rows, keys);
        multiply_block<Arithmetic>(rows, dim, Arithmetic::units(keys), h.scale, row_panel,
                                   k_panels + Arithmetic::units(k0) * Arithmetic::columns, key_units, dq + i * dim, dim,
                                   false);
      }
      for (int64_t i = 0; i < count; ++i)
        span_from_float(static_cast<char*>(h.dq) + ((q0 + i) * h.dq_stride + head * dim) * bytes, h.dtype, dq + i * dim,
                        dim);
      // dk and dv, by panels of keys.
      for (int64_t j = 0; j < keys; j += Arithmetic::rows) {
        const int64_t rows = keys - j < Arithmetic::rows ? keys - j : Arithmetic::rows;
        Arithmetic::pack_columns(column_panel, ds, stride, j, rows, count);
        multiply_block<Arithmetic>(rows, dim, units, h.scale, column_panel, q_columns, units, dk + (k0 + j) * dim, dim,
                                   true);
        Arithmetic::pack_columns(column_panel, p, stride, j, rows, count);
        multiply_block<Arithmetic>(rows, dim, units, 1, column_panel, dout_columns, units, dv + (k0 + j) * dim, dim, true);
      }
    }
  }
  // Keys that no query sees have no gradient.
  char *dk_out = static_cast<char*>(h.dk), *dv_out = static_cast<char*>(h.dv);
  for (int64_t i = 0; i < s.skipped; ++i) {
    memset(dk_out + i * h.dk_stride * bytes, 0, static_cast<size_t>(dim * bytes));
    memset(dv_out + i * h.dv_stride * bytes, 0, static_cast<size_t>(dim * bytes));
  }
  for (int64_t i = 0; i < s.keys; ++i) {
    span_from_float(dk_out + (s.skipped + i) * h.dk_stride * bytes, h.dtype, dk + i * dim, dim);
    span_from_float(dv_out + (s.skipped + i) * h.dv_stride * bytes, h.dtype, dv + i * dim, dim);
  }
}

}  // namespace

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
