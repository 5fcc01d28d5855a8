// Fused causal attention of every level, with windows, soft caps and ALiBi, against softmax(q kᵀ · scale) v in double.
#include <cstring>

#include "test/matrix.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

// One group of query heads: random data in the element type, rows farther apart than they are long.
void check_group(const cpu::Kernels& level, Random& random, DType dtype, int64_t sequence, int64_t head_dim) {
  const int64_t queries = random.integer(1, 4);
  const int64_t q_stride = queries * head_dim + random.integer(0, 7), kv_stride = head_dim + random.integer(0, 7);
  const auto scale = static_cast<float>(random.uniform(0.05, 0.5));
  const double spread = random.uniform(0.5, 6);
  const int64_t window = random.flip() ? random.integer(1, sequence + 3) : 0;
  const auto softcap = random.flip() ? static_cast<float>(random.uniform(0.5, 30)) : 0.0f;
  const bool alibi = random.flip();
  const auto slopes = random.uniforms(queries, 0, 0.6);
  const auto q_bytes = encode(random.uniforms(sequence * q_stride, -spread, spread), dtype);
  const auto k_bytes = encode(random.uniforms(sequence * kv_stride, -spread, spread), dtype);
  const auto v_bytes = encode(random.uniforms(sequence * kv_stride), dtype);
  const auto q = decode(q_bytes, dtype), k = decode(k_bytes, dtype), v = decode(v_bytes, dtype);

  auto out_bytes = encode(std::vector<float>(q.size(), NAN), dtype);
  std::vector<float> scratch(static_cast<size_t>(level.attention_scratch(sequence, head_dim)), NAN);
  scratch.push_back(1234.5f);
  cpu::AttentionHead head{};
  head.dtype = dtype;
  head.q = q_bytes.data();
  head.k = k_bytes.data();
  head.v = v_bytes.data();
  head.out = out_bytes.data();
  head.q_stride = head.out_stride = q_stride;
  head.kv_stride = kv_stride;
  head.queries = queries;
  head.sequence = sequence;
  head.head_dim = head_dim;
  head.scale = scale;
  head.window = window;
  head.softcap = softcap;
  head.slopes = alibi ? slopes.data() : nullptr;
  level.attention(head, scratch.data());
  CHECK_EQUAL(scratch.back(), 1234.5f);

  const auto out = decode(out_bytes, dtype);
  const double tolerance = dtype == DType::f32 ? 1e-5 : dtype == DType::f16 ? 1e-3 : 6e-3;
  std::vector<double> p(static_cast<size_t>(sequence));
  for (int64_t h = 0; h < queries; ++h) {
    for (int64_t t = 0; t < sequence; ++t) {
      const int64_t first = window > 0 ? std::max<int64_t>(0, t - window + 1) : 0;
      double largest = -INFINITY, sum = 0;
      for (int64_t s = first; s <= t; ++s) {
        double dot = 0;
        for (int64_t d = 0; d < head_dim; ++d)
          dot += static_cast<double>(q[static_cast<size_t>(t * q_stride + h * head_dim + d)]) *
                 k[static_cast<size_t>(s * kv_stride + d)];
        double score = dot * scale;
        if (softcap > 0) score = softcap * std::tanh(score / softcap);
        if (alibi) score += slopes[static_cast<size_t>(h)] * static_cast<double>(s - t);
        p[static_cast<size_t>(s)] = score;
        largest = std::fmax(largest, score);
      }
      for (int64_t s = first; s <= t; ++s) sum += p[static_cast<size_t>(s)] = std::exp(p[static_cast<size_t>(s)] - largest);
      for (int64_t d = 0; d < head_dim; ++d) {
        double expected = 0;
        for (int64_t s = first; s <= t; ++s)
          expected += p[static_cast<size_t>(s)] * v[static_cast<size_t>(s * kv_stride + d)];
        CHECK_CLOSE(out[static_cast<size_t>(t * q_stride + h * head_dim + d)], expected / sum, tolerance);
      }
    }
  }
  // Between the rows nothing is written.
  for (int64_t t = 0; t < sequence; ++t)
    for (int64_t j = queries * head_dim; j < q_stride; ++j) CHECK(std::isnan(out[static_cast<size_t>(t * q_stride + j)]));
}

}  // namespace

TEST("attention: random sequences, head sizes, groups of queries, types, windows, soft caps and ALiBi") {
  for (const auto* level : cpu::available_kernels()) {
    for (uint64_t seed = 1; seed <= 150; ++seed) {
      Random random(seed);
      const DType dtype = seed % 3 == 0 ? DType::bf16 : seed % 3 == 1 ? DType::f32 : DType::f16;
      const int64_t sequence = random.integer(1, 70), head_dim = random.integer(1, 80);
      describe_case(level->name, ", seed ", seed, ", ", dtype_name(dtype), ", sequence ", sequence, ", head_dim ", head_dim);
      check_group(*level, random, dtype, sequence, head_dim);
    }
  }
}

TEST("attention: a long sequence, and scores that would overflow without the maximum") {
  for (const auto* level : cpu::available_kernels()) {
    Random random(7);
    for (DType dtype : {DType::f32, DType::bf16}) {
      describe_case(level->name, ", long, ", dtype_name(dtype));
      check_group(*level, random, dtype, 301, 64);
    }

    describe_case(level->name, ", large scores");
    constexpr int64_t sequence = 20, head_dim = 8;
    std::vector<float> q(sequence * head_dim, 30.0f), k = q, v(sequence * head_dim, 0.5f), out(q.size(), NAN);
    std::vector<float> scratch(static_cast<size_t>(level->attention_scratch(sequence, head_dim)), NAN);
    cpu::AttentionHead head{DType::f32, q.data(), k.data(), v.data(), out.data(), head_dim, head_dim, head_dim,
                            1,          sequence, head_dim, 1.0f,     0,          0,        nullptr};
    level->attention(head, scratch.data());
    for (float value : out) CHECK_CLOSE(value, 0.5, 1e-6);
  }
}
