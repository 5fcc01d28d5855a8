// Causal attention of few queries, as those of a token that is generated: bound by reading the keys and values, so these are not
// packed. The rows are the queries of all heads that share a key/value head; what is read serves four of them.
#include "cpu/attention.h"
#include "cpu/kernels/elements.h"
#include "cpu/kernels/lanes.h"
#include "cpu/spans.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

constexpr int64_t row_group = 4, feature_group = 4;  // rows and vectors of features whose sums are in registers

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

struct Sizes {
  explicit Sizes(const AttentionHead& h)
      : skipped(h.window > 0 && h.start >= h.window ? h.start - h.window + 1 : 0),
        start(h.start - skipped),
        keys(start + h.queries),
        keys_padded(round_up(keys, width)),
        features(round_up(h.head_dim, width)),
        rows(h.heads * h.queries),
        rows_padded(round_up(rows, row_group)) {}
  int64_t skipped;  // keys that no query sees
  int64_t start, keys, keys_padded, features, rows, rows_padded;
};

// Lane i of the result is the sum of square[i].
vf sums_of(vf* square) {
  transpose_square(square);
  for (int64_t step = width / 2; step > 0; step /= 2)
    for (int64_t i = 0; i < step; ++i) square[i] += square[i + step];
  return square[0];
}

// scores [rows, keys_padded] = q [rows, features] · kᵀ; behind the last key anything.
template <typename Elements>
void score(const AttentionHead& h, const Sizes& s, const float* q, float* scores) {
  const char* k = static_cast<const char*>(h.k) + s.skipped * h.k_stride * Elements::bytes;
  for (int64_t r = 0; r < s.rows; r += row_group) {
    for (int64_t j = 0; j < s.keys; j += width) {
      vf sums[row_group][width];
      for (int64_t i = 0; i < width; ++i) {
        const char* key = k + (j + i < s.keys ? j + i : s.keys - 1) * h.k_stride * Elements::bytes;
        vf sum[row_group] = {};
        for (int64_t d = 0; d < h.head_dim; d += width) {
          const vf x = Elements::load(key + d * Elements::bytes, h.head_dim - d);
#pragma GCC unroll 4
          for (int64_t g = 0; g < row_group; ++g) sum[g] += x * load(q + (r + g) * s.features + d);
        }
#pragma GCC unroll 4
        for (int64_t g = 0; g < row_group; ++g) sums[g][i] = sum[g];
      }
      for (int64_t g = 0; g < row_group; ++g) store(scores + (r + g) * s.keys_padded + j, sums_of(sums[g]));
    }
  }
}

// Makes a row's scores probabilities, times their sum, which it returns and in which the head's sink counts; zero where the query
// does not see.
float soften(const AttentionHead& h, const Sizes& s, int64_t row, float* x) {
  const int64_t head = row % h.heads, seen = s.start + row / h.heads + 1;
  const int64_t first = h.window > 0 && seen > h.window ? seen - h.window : 0;
  if (h.softcap > 0) softcap(x + first, h.softcap, seen - first);
  if (h.slopes != nullptr)
    for (int64_t j = first; j < seen; ++j) x[j] += h.slopes[head] * static_cast<float>(j + 1 - seen);
  for (int64_t j = 0; j < first; ++j) x[j] = -1e30f;
  for (int64_t j = seen; j < s.keys_padded; ++j) x[j] = -1e30f;
  vf top = load(x);
  for (int64_t j = width; j < s.keys_padded; j += width) top = vmax(top, load(x + j));
  float largest = horizontal_max(top), sunk = 0;
  if (h.sinks != nullptr) {
    if (h.sinks[head] > largest) largest = h.sinks[head];
    sunk = vexp(broadcast(h.sinks[head] - largest))[0];
  }
  vf sum = {};
  for (int64_t j = 0; j < s.keys_padded; j += width) {
    const vf e = vexp(load(x + j) - largest);
    store(x + j, e);
    sum += e;
  }
  return horizontal_sum(sum) + sunk;
}

// mixed [rows, features] = probabilities [rows, keys_padded] · v
template <typename Elements>
void mix(const AttentionHead& h, const Sizes& s, const float* probabilities, float* mixed) {
  const char* v = static_cast<const char*>(h.v) + s.skipped * h.v_stride * Elements::bytes;
  for (int64_t r = 0; r < s.rows; r += row_group) {
    const float* p = probabilities + r * s.keys_padded;
    for (int64_t d = 0; d < h.head_dim; d += feature_group * width) {
      vf sums[row_group][feature_group] = {};
      const auto add = [&](int64_t j, int64_t i) {
        const int64_t left = h.head_dim - d - i * width;
        // So that compilers see that it is not negative.
        const int64_t count = left < width ? left & (width - 1) : width;
        const vf x = Elements::load(v + (j * h.v_stride + d + i * width) * Elements::bytes, count);
#pragma GCC unroll 4
        for (int64_t g = 0; g < row_group; ++g) sums[g][i] += x * p[g * s.keys_padded + j];
      };
      const int64_t vectors = (h.head_dim - d + width - 1) / width;
      for (int64_t j = 0; j < s.keys; ++j) {
        if (vectors >= feature_group) {
#pragma GCC unroll 4
          for (int64_t i = 0; i < feature_group; ++i) add(j, i);
        } else {
          for (int64_t i = 0; i < vectors; ++i) add(j, i);
        }
      }
      for (int64_t g = 0; g < row_group; ++g)
        for (int64_t i = 0; i < feature_group && i < vectors; ++i)
          store(mixed + (r + g) * s.features + d + i * width, sums[g][i]);
    }
  }
}

template <typename Elements>
void attend_rows(const AttentionHead& h, float* scratch) {
  const Sizes s(h);
  const auto bytes = static_cast<int64_t>(dtype_size(h.dtype));
  float* q = scratch;  // [rows_padded, features], times the scale; then what becomes of them
  float* scores = q + s.rows_padded * s.features;  // [rows_padded, keys_padded]
  memset(q, 0, static_cast<size_t>(s.rows_padded * s.features) * sizeof(float));
  const auto place = [&](int64_t row, int64_t stride) {
    return (row / h.heads * stride + row % h.heads * h.head_dim) * bytes;
  };
  for (int64_t row = 0; row < s.rows; ++row) {
    float* x = q + row * s.features;
    span_to_float(x, static_cast<const char*>(h.q) + place(row, h.q_stride), h.dtype, h.head_dim);
    for (int64_t d = 0; d < h.head_dim; ++d) x[d] *= h.scale;
  }
  score<Elements>(h, s, q, scores);
  float* sums = scores + s.rows_padded * s.keys_padded;  // [rows]
  for (int64_t row = 0; row < s.rows; ++row) sums[row] = soften(h, s, row, scores + row * s.keys_padded);
  mix<Elements>(h, s, scores, q);
  for (int64_t row = 0; row < s.rows; ++row) {
    float* x = q + row * s.features;
    for (int64_t d = 0; d < h.head_dim; ++d) x[d] /= sums[row];
    span_from_float(static_cast<char*>(h.out) + place(row, h.out_stride), h.dtype, x, h.head_dim);
  }
}

}  // namespace

int64_t few_queries_scratch(const AttentionHead& h) {
  const Sizes s(h);
  return s.rows_padded * (s.features + s.keys_padded + 1);
}

void attend_few(const AttentionHead& h, float* scratch) {
  if (h.dtype == DType::bf16) return attend_rows<BfloatElements>(h, scratch);
  attend_rows<FloatElements>(h, scratch);
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
