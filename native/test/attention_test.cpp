// Fused causal attention of every level, with windows, soft caps and ALiBi, against softmax(q kᵀ · scale) v in double.
#include "cpu/attention.h"

#include <algorithm>

#include "test/matrix.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

// A group of query heads with random data in the element type; rows are farther apart than they are long.
struct Group {
  Group(Random& random, DType dtype, int64_t queries, int64_t start, int64_t head_dim)
      : dtype(dtype), queries(queries), keys(start + queries), head_dim(head_dim) {
    heads = random.integer(1, 9);
    q_stride = heads * head_dim + random.integer(0, 7);
    k_stride = head_dim + random.integer(0, 7);
    v_stride = head_dim + random.integer(0, 7);
    head.dtype = dtype;
    head.heads = heads;
    head.queries = queries;
    head.start = start;
    head.head_dim = head_dim;
    head.q_stride = head.out_stride = q_stride;
    head.k_stride = k_stride;
    head.v_stride = v_stride;
    head.scale = static_cast<float>(random.uniform(0.05, 0.5));
    const double spread = random.uniform(0.5, 6);
    head.window = random.flip() ? random.integer(1, keys + 3) : 0;
    head.softcap = random.flip() ? static_cast<float>(random.uniform(0.5, 30)) : 0.0f;
    const bool alibi = random.flip();
    slopes = random.uniforms(heads, 0, 0.6);
    if (alibi) head.slopes = slopes.data();
    sinks = random.uniforms(heads, -4, 12);
    if (random.flip()) head.sinks = sinks.data();
    q_bytes = encode(random.uniforms(queries * q_stride, -spread, spread), dtype);
    k_bytes = encode(random.uniforms(keys * k_stride, -spread, spread), dtype);
    v_bytes = encode(random.uniforms(keys * v_stride), dtype);
    head.q = q_bytes.data();
    head.k = k_bytes.data();
    head.v = v_bytes.data();
  }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  // The output of the queries from `first` on, with gaps as in q that hold NaN.
  std::vector<float> attend(cpu::Level level, int64_t first = 0) const {
    cpu::AttentionHead part = head;
    part.queries -= first;
    part.start += first;
    part.q = q_bytes.data() + static_cast<size_t>(first * q_stride) * dtype_size(dtype);
    auto out = encode(std::vector<float>(static_cast<size_t>(part.queries * q_stride), NAN), dtype);
    part.out = out.data();
    std::vector<float> scratch(static_cast<size_t>(cpu::attention_scratch[level](part)), NAN);
    scratch.push_back(1234.5f);
    cpu::attend[level](part, scratch.data());
    CHECK_EQUAL(scratch.back(), 1234.5f);
    return decode(out, dtype);
  }

  void check(cpu::Level level) const {
    const auto q = decode(q_bytes, dtype), k = decode(k_bytes, dtype), v = decode(v_bytes, dtype), out = attend(level);
    const double tolerance = dtype == DType::f32 ? 1e-5 : dtype == DType::f16 ? 1e-3 : 6e-3;
    std::vector<double> p(static_cast<size_t>(keys));
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t t = 0; t < queries; ++t) {
        const int64_t last = head.start + t, first = head.window > 0 ? std::max<int64_t>(0, last - head.window + 1) : 0;
        double largest = -INFINITY, sum = 0;
        for (int64_t s = first; s <= last; ++s) {
          double dot = 0;
          for (int64_t d = 0; d < head_dim; ++d)
            dot += static_cast<double>(q[static_cast<size_t>(t * q_stride + h * head_dim + d)]) *
                   k[static_cast<size_t>(s * k_stride + d)];
          double score = dot * head.scale;
          if (head.softcap > 0) score = head.softcap * std::tanh(score / head.softcap);
          if (head.slopes != nullptr) score += slopes[static_cast<size_t>(h)] * static_cast<double>(s - last);
          p[static_cast<size_t>(s)] = score;
          largest = std::fmax(largest, score);
        }
        if (head.sinks != nullptr) {
          const double sink = sinks[static_cast<size_t>(h)];
          largest = std::fmax(largest, sink);
          sum = std::exp(sink - largest);
        }
        for (int64_t s = first; s <= last; ++s)
          sum += p[static_cast<size_t>(s)] = std::exp(p[static_cast<size_t>(s)] - largest);
        for (int64_t d = 0; d < head_dim; ++d) {
          double expected = 0;
          for (int64_t s = first; s <= last; ++s)
            expected += p[static_cast<size_t>(s)] * v[static_cast<size_t>(s * v_stride + d)];
          CHECK_CLOSE(out[static_cast<size_t>(t * q_stride + h * head_dim + d)], expected / sum, tolerance);
        }
      }
    }
    // Between the rows nothing is written.
    for (int64_t t = 0; t < queries; ++t)
      for (int64_t j = heads * head_dim; j < q_stride; ++j) CHECK(std::isnan(out[static_cast<size_t>(t * q_stride + j)]));
  }

  DType dtype;
  int64_t queries, keys, head_dim, heads, q_stride, k_stride, v_stride;
  std::vector<float> slopes, sinks;
  std::vector<char> q_bytes, k_bytes, v_bytes;
  cpu::AttentionHead head{};
};

}  // namespace

TEST("attention: random sequences, head sizes, groups of queries, types, windows, soft caps, ALiBi and sinks") {
  for (cpu::Level level : cpu::available_levels()) {
    for (uint64_t seed = 1; seed <= 150; ++seed) {
      Random random(seed);
      const DType dtype = seed % 3 == 0 ? DType::bf16 : seed % 3 == 1 ? DType::f32 : DType::f16;
      const int64_t queries = random.integer(1, 70), start = random.flip() ? random.integer(1, 90) : 0;
      const int64_t head_dim = random.integer(1, 80);
      describe_case(cpu::level_name(level), ", seed ", seed, ", ", dtype_name(dtype), ", ", queries, " queries from ", start,
                    ", head_dim ", head_dim);
      Group(random, dtype, queries, start, head_dim).check(level);
    }
  }
}

// Few queries are not packed.
TEST("attention: one to three queries after many keys") {
  for (cpu::Level level : cpu::available_levels()) {
    for (uint64_t seed = 1; seed <= 120; ++seed) {
      Random random(seed);
      const DType dtype = seed % 2 == 0 ? DType::bf16 : DType::f32;
      const int64_t queries = random.integer(1, 3), start = random.flip() ? random.integer(0, 20) : random.integer(100, 300);
      const int64_t head_dim = random.flip() ? random.integer(1, 70) : 32 * random.integer(1, 5);
      describe_case(cpu::level_name(level), ", seed ", seed, ", ", dtype_name(dtype), ", ", queries, " queries from ", start,
                    ", head_dim ", head_dim);
      Group(random, dtype, queries, start, head_dim).check(level);
    }
  }
}

// So what is computed again for later tokens only is the same; of few queries but for rounding.
TEST("attention: the last queries alone are bit for bit those of the whole sequence") {
  for (cpu::Level level : cpu::available_levels()) {
    for (uint64_t seed = 1; seed <= 90; ++seed) {
      Random random(seed);
      const DType dtype = seed % 3 == 0 ? DType::bf16 : seed % 3 == 1 ? DType::f32 : DType::f16;
      const bool few = seed > 60;
      const int64_t queries = random.integer(9, 150);
      const int64_t first = few ? queries - random.integer(1, 3) : random.integer(1, queries - 4);
      const Group group(random, dtype, queries, 0, random.integer(1, 40));
      describe_case(cpu::level_name(level), ", seed ", seed, ", ", dtype_name(dtype), ", from ", first, " of ", queries,
                    ", window ", group.head.window);
      const auto whole = group.attend(level), part = group.attend(level, first);
      int64_t different = 0;
      for (size_t i = 0; i < part.size(); ++i) {
        const float other = whole[static_cast<size_t>(first * group.q_stride) + i];
        if (few && dtype != DType::f16 && !std::isnan(other)) {
          CHECK_CLOSE(part[i], other, dtype == DType::f32 ? 1e-5 : 1.2e-2);
          continue;
        }
        different += part[i] != other && !(std::isnan(part[i]) && std::isnan(other));
      }
      CHECK_EQUAL(different, int64_t{0});
    }
  }
}

TEST("attention: a long sequence, and scores that would overflow without the maximum") {
  for (cpu::Level level : cpu::available_levels()) {
    Random random(7);
    for (DType dtype : {DType::f32, DType::bf16}) {
      describe_case(cpu::level_name(level), ", long, ", dtype_name(dtype));
      Group(random, dtype, 301, 0, 64).check(level);
    }

    describe_case(cpu::level_name(level), ", large scores");
    constexpr int64_t sequence = 20, head_dim = 8;
    std::vector<float> q(sequence * head_dim, 30.0f), k = q, v(sequence * head_dim, 0.5f), out(q.size(), NAN);
    cpu::AttentionHead head{};
    head.dtype = DType::f32;
    head.q = q.data();
    head.k = k.data();
    head.v = v.data();
    head.out = out.data();
    head.q_stride = head.k_stride = head.v_stride = head.out_stride = head.head_dim = head_dim;
    head.heads = 1;
    head.queries = sequence;
    head.scale = 1;
    std::vector<float> scratch(static_cast<size_t>(cpu::attention_scratch[level](head)), NAN);
    cpu::attend[level](head, scratch.data());
    for (float value : out) CHECK_CLOSE(value, 0.5, 1e-6);
  }
}
