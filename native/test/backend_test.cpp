// The CPU backend through a device, as the addon uses it: types, views, error messages.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>

#include "cpu/cpu_backend.h"
#include "test/on_device.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

constexpr DType float_types[] = {DType::f32, DType::bf16, DType::f16};

double tolerance_of(DType dtype) { return dtype == DType::f32 ? 2e-5 : dtype == DType::f16 ? 2e-3 : 1.6e-2; }

class Bench : public OnDevice {
 public:
  Bench() : OnDevice(make_cpu_backend(2)) {}

  // Poisoned, to see that every element is written.
  Tensor output(DType dtype, int64_t rows, int64_t columns) {
    return floats(dtype, rows, columns, std::vector<float>(static_cast<size_t>(rows * columns), NAN));
  }
};

std::vector<float> rounded(const std::vector<float>& values, DType dtype) { return decode(encode(values, dtype), dtype); }

int64_t ones(const std::vector<uint8_t>& mask) { return std::accumulate(mask.begin(), mask.end(), int64_t{0}); }

}  // namespace

TEST("backend: the description names the kernels and threads") {
  const auto text = make_cpu_backend(3)->description();
  describe_case(text);
  CHECK(text.find("3 threads") != std::string::npos);
}

TEST("backend: cast and transpose between all float types, of views too") {
  Bench bench;
  Random random(1);
  for (DType from : float_types) {
    for (DType to : float_types) {
      const int64_t rows = random.integer(1, 90), columns = random.integer(2, 90);
      describe_case(dtype_name(from), " to ", dtype_name(to), ", ", rows, " x ", columns);
      const auto values = rounded(random.uniforms(rows * columns), from);
      const Tensor in = bench.floats(from, rows, columns, values), out = bench.output(to, rows, columns);
      bench.run(Cast{out, in});
      CHECK(bench.read(out) == rounded(values, to));
      const Tensor view = in.column_range(1, columns - 1), turned = bench.output(to, columns - 1, rows);
      bench.run(Transpose{turned, view});
      const auto actual = bench.read(turned), expected = rounded(values, to);
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 1; j < columns; ++j)
          CHECK_EQUAL(actual[static_cast<size_t>((j - 1) * rows + i)], expected[static_cast<size_t>(i * columns + j)]);
    }
  }
  const std::vector<uint8_t> mask = {1, 2, 3, 4, 5, 6};
  const Tensor in = bench.upload(DType::u8, 2, 3, mask.data()), out = bench.empty(DType::u8, 3, 2);
  bench.run(Transpose{out, in});
  CHECK(bench.read_as<uint8_t>(out) == (std::vector<uint8_t>{1, 4, 2, 5, 3, 6}));
  CHECK_THROWS_CODE(bench.run(Cast{out, in}), "INTERNAL", "uint8 [2, 3]");
}

TEST("backend: embedding, and ids outside the table") {
  Bench bench;
  Random random(2);
  const auto table = rounded(random.uniforms(11 * 7), DType::bf16);
  const Tensor t = bench.floats(DType::bf16, 11, 7, table);
  std::vector<int32_t> ids = {0, 10, 3, 3, 7};
  const Tensor i = bench.upload(DType::i32, 1, 5, ids.data()), out = bench.output(DType::f32, 5, 7);
  bench.run(Embedding{out, t, i});
  const auto actual = bench.read(out);
  for (size_t k = 0; k < ids.size(); ++k)
    for (size_t j = 0; j < 7; ++j) CHECK_EQUAL(actual[k * 7 + j], table[static_cast<size_t>(ids[k]) * 7 + j]);
  for (int32_t bad : {-1, 11}) {
    ids[3] = bad;
    const Tensor wrong = bench.upload(DType::i32, 1, 5, ids.data());
    CHECK_THROWS_CODE(bench.run(Embedding{out, t, wrong}), "INVALID_OPTION",
                      "token id " + std::to_string(bad) + " at position 3");
  }
}

TEST("backend: linear layers with and without bias, in every type") {
  Bench bench;
  uint64_t seed = 0;
  for (DType type : float_types) {
    for (DType out_type : {type, DType::f32}) {
      for (bool with_bias : {false, true}) {
        Random random(++seed);
        const int64_t tokens = seed % 4 == 0 ? 1500 : random.integer(1, 90);
        const int64_t in = random.integer(1, 90), outs = random.integer(1, 90);
        describe_case("seed ", seed, ", ", dtype_name(type), ", ", tokens, " x ", in, " x ", outs);
        const auto x = rounded(random.uniforms(tokens * in), type), w = rounded(random.uniforms(outs * in), type);
        const auto bias = rounded(random.uniforms(outs), type);
        const Tensor xt = bench.floats(type, tokens, in, x), wt = bench.floats(type, outs, in, w);
        const Tensor bt = with_bias ? bench.floats(type, 1, outs, bias) : Tensor{};
        // A window of a wider tensor, as q, k and v of one product are.
        const Tensor wide = bench.output(out_type, tokens, outs + 5), window = wide.column_range(3, outs);
        bench.run(Linear{window, xt, wt, bt});
        const auto actual = bench.read(wide);
        for (int64_t t = 0; t < tokens; ++t) {
          const auto at = [&](int64_t j) { return actual[static_cast<size_t>(t * (outs + 5) + j)]; };
          CHECK(std::isnan(at(2)) && std::isnan(at(outs + 3)));
          for (int64_t o = 0; o < outs; ++o) {
            double sum = with_bias ? bias[static_cast<size_t>(o)] : 0;
            for (int64_t j = 0; j < in; ++j)
              sum += static_cast<double>(x[static_cast<size_t>(t * in + j)]) * w[static_cast<size_t>(o * in + j)];
            CHECK_CLOSE(at(3 + o), sum, tolerance_of(out_type));
          }
        }
      }
    }
  }
  const Tensor x = bench.output(DType::f32, 3, 4), w = bench.output(DType::f32, 6, 5), out = bench.output(DType::f32, 3, 6);
  CHECK_THROWS_CODE(bench.run(Linear{out, x, w, {}}), "INTERNAL",
                    "x float32 [3, 4] does not fit weight float32 [6, 5] (in operation)");
}

TEST("backend: attention over several sequences with shared key heads") {
  Bench bench;
  Random random(4);
  constexpr int64_t sequence = 9, batch = 3, heads = 6, kv_heads = 2, dim = 5, tokens = sequence * batch;
  const auto q = random.uniforms(tokens * heads * dim, -3, 3), k = random.uniforms(tokens * kv_heads * dim, -3, 3);
  const auto v = random.uniforms(tokens * kv_heads * dim);
  const Tensor qt = bench.floats(DType::f32, tokens, heads * dim, q),
               kt = bench.floats(DType::f32, tokens, kv_heads * dim, k);
  const Tensor vt = bench.floats(DType::f32, tokens, kv_heads * dim, v), out = bench.output(DType::f32, tokens, heads * dim);
  bench.run(Attention{out, qt, kt, vt, {}, {}, batch, 0, heads, kv_heads, dim, 0.4f, 0, 0});
  const auto actual = bench.read(out);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t shared = h / (heads / kv_heads), first = t / sequence * sequence;
      std::vector<double> expected(dim);
      double total = 0;
      for (int64_t s = first; s <= t; ++s) {
        double dot = 0;
        for (int64_t d = 0; d < dim; ++d)
          dot += static_cast<double>(q[static_cast<size_t>((t * heads + h) * dim + d)]) *
                 k[static_cast<size_t>((s * kv_heads + shared) * dim + d)];
        const double p = std::exp(0.4 * dot);
        total += p;
        for (int64_t d = 0; d < dim; ++d)
          expected[static_cast<size_t>(d)] += p * v[static_cast<size_t>((s * kv_heads + shared) * dim + d)];
      }
      for (int64_t d = 0; d < dim; ++d)
        CHECK_CLOSE(actual[static_cast<size_t>((t * heads + h) * dim + d)], expected[static_cast<size_t>(d)] / total, 1e-5);
    }
  }
}

TEST("backend: every query head has its own ALiBi slope and sink; windows and soft caps reach the kernel") {
  Bench bench;
  Random random(14);
  constexpr int64_t sequence = 12, batch = 2, heads = 6, kv_heads = 3, dim = 4, tokens = sequence * batch, window = 5;
  const auto q = random.uniforms(tokens * heads * dim, -3, 3), k = random.uniforms(tokens * kv_heads * dim, -3, 3);
  const auto v = random.uniforms(tokens * kv_heads * dim), slopes = random.uniforms(heads, 0, 1);
  const auto sinks = random.uniforms(heads, -2, 2);
  const Tensor qt = bench.floats(DType::f32, tokens, heads * dim, q),
               kt = bench.floats(DType::f32, tokens, kv_heads * dim, k);
  const Tensor vt = bench.floats(DType::f32, tokens, kv_heads * dim, v), out = bench.output(DType::f32, tokens, heads * dim);
  const Tensor st = bench.floats(DType::f32, 1, heads, slopes), sinkst = bench.floats(DType::f32, 1, heads, sinks);
  bench.run(Attention{out, qt, kt, vt, st, sinkst, batch, 0, heads, kv_heads, dim, 0.4f, window, 2.5f});
  const auto actual = bench.read(out);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t shared = h / (heads / kv_heads), first = std::max(t / sequence * sequence, t - window + 1);
      std::vector<double> expected(dim);
      double total = std::exp(static_cast<double>(sinks[static_cast<size_t>(h)]));
      for (int64_t s = first; s <= t; ++s) {
        double dot = 0;
        for (int64_t d = 0; d < dim; ++d)
          dot += static_cast<double>(q[static_cast<size_t>((t * heads + h) * dim + d)]) *
                 k[static_cast<size_t>((s * kv_heads + shared) * dim + d)];
        const double bias = static_cast<double>(slopes[static_cast<size_t>(h)]) * static_cast<double>(s - t);
        const double p = std::exp(2.5 * std::tanh(0.4 * dot / 2.5) + bias);
        total += p;
        for (int64_t d = 0; d < dim; ++d)
          expected[static_cast<size_t>(d)] += p * v[static_cast<size_t>((s * kv_heads + shared) * dim + d)];
      }
      for (int64_t d = 0; d < dim; ++d)
        CHECK_CLOSE(actual[static_cast<size_t>((t * heads + h) * dim + d)], expected[static_cast<size_t>(d)] / total, 1e-5);
    }
  }
}

TEST("backend: queries that stand behind earlier keys, in several sequences, with keys and values of one projection") {
  Bench bench;
  Random random(21);
  constexpr int64_t length = 23, start = 14, unused = 3, batch = 3, heads = 4, kv_heads = 2, dim = 6, width = kv_heads * dim;
  constexpr int64_t later = length - start;
  for (DType type : float_types) {
    describe_case(dtype_name(type));
    const Tensor q = bench.floats(type, batch * length, heads * dim, random.uniforms(batch * length * heads * dim, -3, 3));
    const Tensor kv =
        bench.floats(type, batch * length, 2 * width + 5, random.uniforms(batch * length * (2 * width + 5), -3, 3));
    const Tensor k = kv.column_range(0, width), v = kv.column_range(width + 5, width);
    const Tensor whole = bench.output(type, batch * length, heads * dim);
    bench.run(Attention{whole, q, k, v, {}, {}, batch, 0, heads, kv_heads, dim, 0.4f, 7, 0});
    const auto expected = bench.read(whole);

    // The later queries of each sequence, after keys in a buffer that has room for more.
    const Tensor few = bench.empty(type, batch * later, heads * dim), out = bench.output(type, batch * later, heads * dim);
    const Tensor keys = bench.output(type, batch * (length + unused), width);
    const Tensor values = bench.output(type, batch * (length + unused), width + 1);
    for (int64_t s = 0; s < batch; ++s) {
      bench.run(Cast{few.row_range(s * later, later), q.row_range(s * length + start, later)});
      bench.run(Cast{keys.row_range(s * (length + unused), length), k.row_range(s * length, length)});
      bench.run(
          Cast{values.column_range(1, width).row_range(s * (length + unused), length), v.row_range(s * length, length)});
    }
    bench.run(
        Attention{out, few, keys, values.column_range(1, width), {}, {}, batch, start, heads, kv_heads, dim, 0.4f, 7, 0});
    const auto actual = bench.read(out);
    for (int64_t s = 0; s < batch; ++s)
      for (int64_t i = 0; i < later * heads * dim; ++i)
        CHECK_EQUAL(actual[static_cast<size_t>(s * later * heads * dim + i)],
                    expected[static_cast<size_t>((s * length + start) * heads * dim + i)]);
    CHECK_THROWS_CODE(bench.run(Attention{out,
                                          few,
                                          keys,
                                          values.column_range(1, width),
                                          {},
                                          {},
                                          batch,
                                          start + unused + 1,
                                          heads,
                                          kv_heads,
                                          dim,
                                          0.4f,
                                          7,
                                          0}),
                      "INTERNAL", "the last query has no key");
  }
}

TEST("backend: rotary at any positions, in both layouts of pairs, of part of every head") {
  Bench bench;
  Random random(15);
  constexpr int64_t angles = 5, heads = 3, dim = 10, half = 3, tokens = 10;
  std::vector<int32_t> positions(tokens);
  for (DType type : float_types) {
    for (bool interleaved : {false, true}) {
      describe_case(dtype_name(type), interleaved ? ", interleaved" : ", halves");
      const auto x = rounded(random.uniforms(tokens * heads * dim), type);
      const auto cosine = random.uniforms(angles * half), sine = random.uniforms(angles * half);
      for (int32_t& position : positions) position = static_cast<int32_t>(random.integer(0, angles - 1));
      const Tensor xt = bench.floats(type, tokens, heads * dim, x);
      const Tensor ct = bench.floats(DType::f32, angles, half, cosine), st = bench.floats(DType::f32, angles, half, sine);
      const Tensor pt = bench.upload(DType::i32, 1, tokens, positions.data());
      bench.run(Rotary{xt, ct, st, pt, dim, interleaved});
      const auto actual = bench.read(xt);
      auto expected = x;
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t h = 0; h < heads; ++h) {
          for (int64_t i = 0; i < half; ++i) {
            const auto head = static_cast<size_t>((t * heads + h) * dim),
                       angle = static_cast<size_t>(positions[static_cast<size_t>(t)] * half + i);
            const size_t first = head + static_cast<size_t>(interleaved ? 2 * i : i);
            const size_t second = head + static_cast<size_t>(interleaved ? 2 * i + 1 : i + half);
            expected[first] = x[first] * cosine[angle] - x[second] * sine[angle];
            expected[second] = x[second] * cosine[angle] + x[first] * sine[angle];
          }
        }
      }
      for (size_t i = 0; i < x.size(); ++i) CHECK_CLOSE(actual[i], expected[i], tolerance_of(type));
      for (int32_t bad : {-1, 5}) {
        auto wrong = positions;
        wrong[4] = bad;
        const Tensor wt = bench.upload(DType::i32, 1, tokens, wrong.data());
        CHECK_THROWS_CODE(bench.run(Rotary{xt, ct, st, wt, dim, interleaved}), "INTERNAL",
                          "position " + std::to_string(bad) + " has no row");
      }
    }
  }
}

TEST("backend: norms of every head, in place") {
  Bench bench;
  Random random(20);
  constexpr int64_t tokens = 7, heads = 3, dim = 19;
  const auto weight = random.uniforms(dim), bias = random.uniforms(dim);
  const Tensor wt = bench.floats(DType::f32, 1, dim, weight), bt = bench.floats(DType::f32, 1, dim, bias);
  for (DType type : float_types) {
    describe_case(dtype_name(type));
    const auto x = rounded(random.uniforms(tokens * heads * dim, -3, 3), type);
    const Tensor layer = bench.floats(type, tokens, heads * dim, x), rms = bench.floats(type, tokens, heads * dim, x);
    const Tensor layer_heads = layer.reshaped(tokens * heads, dim), rms_heads = rms.reshaped(tokens * heads, dim);
    bench.run([&](Backend& b) {
      b.run(LayerNorm{layer_heads, layer_heads, wt, bt, 1e-5f});
      b.run(RmsNorm{rms_heads, rms_heads, wt, 1e-5f});
    });
    const auto l = bench.read(layer), r = bench.read(rms);
    for (size_t head = 0; head < x.size(); head += dim) {
      double mean = 0, squares = 0;
      for (size_t d = 0; d < dim; ++d) {
        mean += x[head + d] / static_cast<double>(dim);
        squares += static_cast<double>(x[head + d]) * x[head + d] / static_cast<double>(dim);
      }
      for (size_t d = 0; d < dim; ++d) {
        const double normal = (x[head + d] - mean) / std::sqrt(squares - mean * mean + 1e-5);
        CHECK_CLOSE(l[head + d], normal * weight[d] + bias[d], tolerance_of(type));
        CHECK_CLOSE(r[head + d], x[head + d] / std::sqrt(squares + 1e-5) * weight[d], tolerance_of(type));
      }
    }
  }
}

TEST("backend: scale and soft cap in every type") {
  Bench bench;
  Random random(16);
  for (DType type : float_types) {
    describe_case(dtype_name(type));
    const auto x = rounded(random.uniforms(7 * 33, -50, 50), type);
    const Tensor scaled = bench.floats(type, 7, 33, x), capped = bench.floats(type, 7, 33, x);
    bench.run([&](Backend& b) {
      b.run(Scale{scaled, 5.75f});
      b.run(Softcap{capped, 30});
    });
    const auto s = bench.read(scaled), c = bench.read(capped);
    for (size_t i = 0; i < x.size(); ++i) {
      CHECK_CLOSE(s[i], x[i] * 5.75, tolerance_of(type));
      CHECK_CLOSE(c[i], 30 * std::tanh(static_cast<double>(x[i]) / 30), tolerance_of(type));
    }
  }
}

TEST("backend: the parts of a fused projection") {
  Bench bench;
  Random random(17);
  for (DType type : float_types) {
    constexpr int64_t tokens = 6, groups = 4, first = 2, count = 3, stride = 7, columns = 3 * stride + first + count;
    describe_case(dtype_name(type));
    const auto x = rounded(random.uniforms(tokens * columns), type);
    const Tensor xt = bench.floats(type, tokens, columns, x), out = bench.output(type, tokens, groups * count);
    bench.run(TakeColumns{out, xt, first, count, stride});
    const auto actual = bench.read(out);
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t g = 0; g < groups; ++g)
        for (int64_t j = 0; j < count; ++j)
          CHECK_EQUAL(actual[static_cast<size_t>((t * groups + g) * count + j)],
                      x[static_cast<size_t>(t * columns + g * stride + first + j)]);
    CHECK_THROWS_CODE(bench.run(TakeColumns{out, xt, first + 1, count, stride}), "INTERNAL",
                      "does not hold the columns of output");
  }
}

TEST("backend: rows are scattered with their factors") {
  Bench bench;
  Random random(18);
  for (DType type : float_types) {
    describe_case(dtype_name(type));
    const auto before = rounded(random.uniforms(9 * 21), type), x = rounded(random.uniforms(4 * 21), type);
    const auto factors = random.uniforms(4);
    std::vector<int32_t> ids = {8, 0, 3, 7};
    const Tensor out = bench.floats(type, 9, 21, before), xt = bench.floats(type, 4, 21, x);
    const Tensor it = bench.upload(DType::i32, 1, 4, ids.data()), ft = bench.floats(DType::f32, 1, 4, factors);
    bench.run(ScatterAdd{out, xt, it, ft});
    std::vector<double> expected(before.begin(), before.end());
    for (size_t t = 0; t < 4; ++t)
      for (size_t j = 0; j < 21; ++j)
        expected[static_cast<size_t>(ids[t]) * 21 + j] += static_cast<double>(factors[t]) * x[t * 21 + j];
    const auto actual = bench.read(out);
    for (size_t i = 0; i < expected.size(); ++i) CHECK_CLOSE(actual[i], expected[i], tolerance_of(type));
    ids[2] = 9;
    const Tensor wrong = bench.upload(DType::i32, 1, 4, ids.data());
    CHECK_THROWS_CODE(bench.run(ScatterAdd{out, xt, wrong, ft}), "INTERNAL", "row 9 is outside");
  }
}

// A routed expert may see no token of a batch.
TEST("backend: operations on no tokens do nothing") {
  Bench bench;
  Random random(19);
  for (DType type : float_types) {
    describe_case(dtype_name(type));
    const auto values = rounded(random.uniforms(5 * 8), type);
    const Tensor table = bench.floats(type, 5, 8, values), ids = bench.empty(DType::i32, 1, 0);
    const Tensor factors = bench.empty(DType::f32, 1, 0),
                 gram = bench.floats(DType::f32, 8, 8, std::vector<float>(64, 2.0f));
    const Tensor squares = bench.floats(DType::f32, 1, 8, std::vector<float>(8, 2.0f));
    const Tensor x = bench.empty(type, 0, 8), up = bench.empty(type, 0, 5), gate = bench.empty(type, 0, 5);
    bench.run([&](Backend& b) {
      b.run(Embedding{x, table, ids});
      b.run(Linear{gate, x, table, {}});
      b.run(Linear{up, x, table, {}});
      b.run(Gate{gate, up, Activation::silu});
      b.run(AccumulateGram{gram, x, 1});
      b.run(AccumulateSquares{squares, x, 1});
      b.run(ScatterAdd{table, x, ids, factors});
    });
    CHECK(bench.read(table) == values);
    CHECK(bench.read(gram) == std::vector<float>(64, 2.0f));
    CHECK(bench.read(squares) == std::vector<float>(8, 2.0f));
  }
}

TEST("backend: cross entropy over a vocabulary larger than one tile, with a bias, with a soft cap") {
  Bench bench;
  for (DType type : {DType::f32, DType::bf16})
    for (bool with_bias : {false, true})
      for (float cap : {0.0f, 3.0f}) {
        describe_case(dtype_name(type), with_bias ? ", bias" : "", ", cap ", cap);
        Random random(5);
        constexpr int64_t tokens = 60, hidden = 24, words = 5000;
        const auto x = rounded(random.uniforms(tokens * hidden, -4, 4), type);
        const auto head = rounded(random.uniforms(words * hidden), type);
        std::vector<int32_t> targets(tokens);
        for (int32_t& id : targets) id = static_cast<int32_t>(random.integer(0, words - 1));
        targets[0] = words - 1;
        const Tensor xt = bench.floats(type, tokens, hidden, x), ht = bench.floats(type, words, hidden, head);
        const auto bias = rounded(random.uniforms(words), type);
        const Tensor bt = with_bias ? bench.floats(type, 1, words, bias) : Tensor{};
        const Tensor tt = bench.upload(DType::i32, 1, tokens, targets.data()), losses = bench.output(DType::f32, 1, tokens);
        const Tensor likeliest = bench.empty(DType::i32, 1, tokens);
        bench.run(CrossEntropy{losses, xt, ht, bt, tt, cap, likeliest});
        const auto actual = bench.read(losses);
        for (size_t t = 0; t < targets.size(); ++t) {
          std::vector<double> logits(words);
          double sum = 0;
          for (size_t o = 0; o < logits.size(); ++o) {
            for (size_t j = 0; j < hidden; ++j) logits[o] += static_cast<double>(x[t * hidden + j]) * head[o * hidden + j];
            if (with_bias) logits[o] += bias[o];
            if (cap > 0) logits[o] = cap * std::tanh(logits[o] / cap);
            sum += std::exp(logits[o]);
          }
          CHECK_CLOSE(actual[t], std::log(sum) - logits[static_cast<size_t>(targets[t])], 5e-6);
          const auto top = static_cast<size_t>(likeliest.data<int32_t>()[t]);
          CHECK_CLOSE(logits[top], *std::max_element(logits.begin(), logits.end()), 1e-5);
        }
        targets[2] = words;
        const Tensor wrong = bench.upload(DType::i32, 1, tokens, targets.data());
        CHECK_THROWS_CODE(bench.run(CrossEntropy{losses, xt, ht, bt, wrong, cap}), "INVALID_OPTION", "5000");
      }
}

TEST("backend: Gram matrix and squares accumulate over calls") {
  Bench bench;
  for (DType type : float_types) {
    Random random(6);
    const int64_t columns = random.integer(30, 90);
    std::vector<double> expected(static_cast<size_t>(columns * columns));
    const Tensor gram = bench.output(DType::f32, columns, columns), squares = bench.output(DType::f32, 1, columns);
    bench.run([&](Backend& b) {
      b.run(Fill{gram, 0});
      b.run(Fill{squares, 0});
    });
    for (int call = 0; call < 3; ++call) {
      const int64_t tokens = random.integer(1, 300);
      const auto x = rounded(random.uniforms(tokens * columns), type);
      const Tensor xt = bench.floats(type, tokens, columns, x);
      bench.run([&](Backend& b) {
        b.run(AccumulateGram{gram, xt, 0.25f});
        b.run(AccumulateSquares{squares, xt, 0.25f});
      });
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t i = 0; i < columns; ++i)
          for (int64_t j = i; j < columns; ++j)
            expected[static_cast<size_t>(i * columns + j)] += 0.25 * x[static_cast<size_t>(t * columns + i)] *
                                                              static_cast<double>(x[static_cast<size_t>(t * columns + j)]);
    }
    describe_case(dtype_name(type));
    const auto g = bench.read(gram), s = bench.read(squares);
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t j = i; j < columns; ++j) {
        const auto at = static_cast<size_t>(i * columns + j);
        CHECK_CLOSE(g[at], expected[at], 1e-5);
      }
      CHECK_CLOSE(s[static_cast<size_t>(i)], expected[static_cast<size_t>(i * columns + i)], 1e-5);
    }
  }
}

TEST("backend: zeros and patterns are counted") {
  Bench bench;
  const std::vector<int32_t> wanted = {2, 4, 1, 2, 4, 8, 1, 3};
  const Tensor patterns = bench.upload(DType::i32, 4, 2, wanted.data()), stats = bench.empty(DType::f64, 1, 5);
  for (DType type : float_types) {
    describe_case(dtype_name(type));
    //                            2:4 holds, 1:2 does not (the second pair), 4:8 holds; 8 columns are no
    //                            groups of 3
    const std::vector<float> x = {0, 0, 1, 2, -0.0f, 3, 0, 4, 0, 1, 0, 1, 1, 0, 1, 0};
    const Tensor t = bench.floats(type, 2, 8, x);
    bench.run(CountZeros{stats, t, patterns});
    CHECK(bench.read_as<double>(stats) == (std::vector<double>{8, 1, 0, 1, 0}));
  }
}

TEST("backend: a file is written at its position; a full disk is reported") {
  Bench bench;
  Random random(7);
  const auto values = random.uniforms(3 * 50);
  const Tensor t = bench.floats(DType::f32, 3, 50, values);
  char path[] = "/tmp/sparsegpt-test-XXXXXX";
  const int fd = mkstemp(path);
  bench.run(WriteFile{t, fd, 100});
  std::vector<float> back(values.size());
  CHECK_EQUAL(pread(fd, back.data(), 4 * back.size(), 100), static_cast<ssize_t>(4 * back.size()));
  CHECK(back == values);
  close(fd);
  unlink(path);
  CHECK_THROWS_CODE(bench.run(WriteFile{t, fd, 0}), "WRITE_FAILED", "write: Bad file descriptor");

  const int full = open("/dev/full", O_WRONLY);
  if (full < 0) return;  // not Linux
  CHECK_THROWS_CODE(bench.run(WriteFile{t, full, 0}), "WRITE_FAILED", "the disk is full");
  close(full);
}

TEST("backend: timestamps rise; a tensor of a mapped file is not written") {
  Bench bench;
  const Tensor before = bench.empty(DType::f64, 1, 1), after = bench.empty(DType::f64, 1, 1);
  bench.run([&](Backend& b) {
    b.run(Timestamp{before});
    const double seconds = b.time([] { usleep(3000); });
    CHECK(seconds >= 0.003 && seconds < 1);
    b.run(Timestamp{after});
  });
  CHECK(bench.read_as<double>(after)[0] - bench.read_as<double>(before)[0] >= 0.003);

  class ReadOnly : public Storage {
   public:
    std::byte* data() override { return reinterpret_cast<std::byte*>(&value_); }
    size_t size() const override { return sizeof value_; }
    bool read_only() const override { return true; }

   private:
    double value_ = 1;
  };
  const Tensor file{std::make_shared<ReadOnly>(), DType::f64, 1, 1, 1, 0};
  CHECK_THROWS_CODE(bench.run(Fill{file, 0}), "INTERNAL", "must be in the device's memory");
}

TEST("backend: SparseGPT end to end, from activations to the loss") {
  Bench bench;
  Random random(9);
  const Tensor x = bench.floats(DType::f32, 200, 48, random.uniforms(200 * 48));
  const Tensor w = bench.floats(DType::f32, 30, 48, random.uniforms(30 * 48)), mask = bench.empty(DType::u8, 30, 48);
  const Tensor gram = bench.empty(DType::f32, 48, 48), dead = bench.empty(DType::u8, 1, 48);
  const Tensor report = bench.empty(DType::f64, 1, factor_report::count), loss = bench.empty(DType::f64, 1, 1);
  bench.run([&](Backend& b) {
    b.run(Fill{gram, 0});
    b.run(AccumulateGram{gram, x, 2.0f / 200});
    b.run(FactorHessian{gram, dead, report, 0.01});
    b.run(PruneSparsegpt{w, mask, loss, gram, dead, {}, 0, 2, 4, 128, 0});
  });
  CHECK(bench.read_as<double>(report) == (std::vector<double>{0.01, 0, 0}));
  CHECK_EQUAL(ones(bench.read_as<uint8_t>(mask)), int64_t{30 * 24});
  const auto pruned = bench.read(w);
  CHECK_EQUAL(std::count(pruned.begin(), pruned.end(), 0.0f), std::ptrdiff_t{30 * 24});
  const double total = bench.read_as<double>(loss)[0];
  CHECK(total > 0 && std::isfinite(total));
  CHECK_THROWS_CODE(bench.run(PruneSparsegpt{w, mask, loss, gram, dead, {}, 0, 3, 7, 128, 0}), "INVALID_OPTION", "3:7");
  const auto grouped = [&](int64_t groups, int m, int64_t block) {
    const Tensor steps = bench.empty(DType::bf16, 30, groups), zeros = bench.empty(DType::f32, 30, groups);
    bench.run(PruneSparsegpt{w, mask, loss, gram, dead, {}, 0.5, m / 2, m, block, 4, steps, zeros, false, false});
  };
  CHECK_THROWS_CODE(grouped(4, 0, 128), "INVALID_OPTION", "multiple of 8");
  CHECK_THROWS_CODE(grouped(2, 16, 128), "INVALID_OPTION", "not whole groups of 16");
  CHECK_THROWS_CODE(grouped(2, 0, 20), "INVALID_OPTION", "block size 20");
}
