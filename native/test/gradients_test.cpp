// Gradients on the CPU against central differences of the same functions in double.
#include <algorithm>
#include <cmath>
#include <functional>

#include "cpu/cpu_backend.h"
#include "test/activations.h"
#include "test/on_device.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

using Vector = std::vector<double>;

Vector widened(const std::vector<float>& x) { return {x.begin(), x.end()}; }

// The gradient of a function by the elements of x.
Vector differences(const std::function<double(const Vector&)>& f, Vector x) {
  Vector gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double before = x[i], step = 1e-5;
    x[i] = before + step;
    const double above = f(x);
    x[i] = before - step;
    gradient[i] = (above - f(x)) / (2 * step);
    x[i] = before;
  }
  return gradient;
}

double weighted(const Vector& values, const std::vector<float>& weights) {
  double sum = 0;
  for (size_t i = 0; i < values.size(); ++i) sum += values[i] * static_cast<double>(weights[i]);
  return sum;
}

class Bench : public OnDevice {
 public:
  Bench() : OnDevice(make_cpu_backend(2)) {}

  Tensor output(DType dtype, int64_t rows, int64_t columns) {
    return floats(dtype, rows, columns, std::vector<float>(static_cast<size_t>(rows * columns), NAN));
  }

  // The tensor is `expected`, relative to its largest element.
  void check(const Tensor& actual, const Vector& expected, double tolerance) {
    const auto values = read(actual);
    double largest = 1e-12, worst = 0;
    for (double value : expected) largest = std::max(largest, std::abs(value));
    CHECK_EQUAL(values.size(), expected.size());
    for (size_t i = 0; i < values.size(); ++i) {
      CHECK(!std::isnan(values[i]));
      worst = std::max(worst, std::abs(static_cast<double>(values[i]) - expected[i]) / largest);
    }
    CHECK_CLOSE(worst, 0.0, tolerance);
  }
};

// float32, and bfloat16 whose own rounding dominates.
constexpr DType types[] = {DType::f32, DType::bf16, DType::f16};
double tolerance_of(DType dtype) { return dtype == DType::f32 ? 2e-5 : dtype == DType::f16 ? 4e-3 : 3e-2; }

std::vector<float> rounded(const std::vector<float>& values, DType dtype) { return decode(encode(values, dtype), dtype); }

}  // namespace

TEST("gradients: the input, weight and bias of a linear layer") {
  Bench bench;
  for (DType type : types) {
    Random random(type == DType::f32 ? 1 : type == DType::bf16 ? 2 : 3);
    const int64_t tokens = random.integer(1, 200), in = random.integer(1, 60), out = random.integer(1, 60);
    describe_case(dtype_name(type), ", ", tokens, " x ", in, " x ", out);
    const auto x = rounded(random.uniforms(tokens * in), type), w = rounded(random.uniforms(out * in), type);
    const auto dy = rounded(random.uniforms(tokens * out), type);
    const Tensor xt = bench.floats(type, tokens, in, x), wt = bench.floats(type, out, in, w);
    const Tensor dyt = bench.floats(type, tokens, out, dy), dx = bench.output(type, tokens, in);
    Vector by_x(static_cast<size_t>(tokens * in)), by_weight(static_cast<size_t>(out * in), 1),
        by_bias(static_cast<size_t>(out), 1);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t o = 0; o < out; ++o) {
        const double g = dy[static_cast<size_t>(t * out + o)];
        by_bias[static_cast<size_t>(o)] += g;
        for (int64_t i = 0; i < in; ++i) {
          by_x[static_cast<size_t>(t * in + i)] += g * w[static_cast<size_t>(o * in + i)];
          by_weight[static_cast<size_t>(o * in + i)] += 0.5 * g * x[static_cast<size_t>(t * in + i)];
        }
      }
    }
    bench.run(Multiply{dx, dyt, wt});
    bench.check(dx, by_x, tolerance_of(type));
    // Sums are added to, here to ones.
    const Tensor dw = bench.floats(DType::f32, out, in, std::vector<float>(w.size(), 1));
    bench.run(AccumulateProduct{dw, dyt, xt, 0.5f});
    bench.check(dw, by_weight, 2e-5);
    const Tensor db = bench.floats(DType::f32, 1, out, std::vector<float>(static_cast<size_t>(out), 1));
    bench.run(AccumulateRows{db, dyt});
    bench.check(db, by_bias, 2e-5);
  }
  const Tensor x = bench.output(DType::f32, 3, 4), y = bench.output(DType::f32, 2, 5), sum = bench.output(DType::f32, 4, 5);
  CHECK_THROWS_CODE(bench.run(AccumulateProduct{sum, x, y, 1}), "INTERNAL", "differ in rows");
}

TEST("gradients: layer norm and root-mean-square norm") {
  Bench bench;
  uint64_t seed = 10;
  for (bool centred : {true, false}) {
    for (DType type : types) {
      Random random(++seed);
      const int64_t rows = random.integer(1, 5), columns = random.integer(2, 41);
      describe_case(centred ? "layer norm, " : "rms norm, ", dtype_name(type), ", ", rows, " x ", columns);
      const auto x = rounded(random.uniforms(rows * columns, -2, 3), type);
      const auto dy = rounded(random.uniforms(rows * columns), type), w = random.uniforms(columns, 0.5, 2);
      const auto norm = [&](const Vector& values, const Vector& weight, const Vector& bias) {
        Vector out(values.size());
        for (int64_t t = 0; t < rows; ++t) {
          const double* row = values.data() + t * columns;
          double mean = 0, square = 0;
          for (int64_t j = 0; centred && j < columns; ++j) mean += row[j] / static_cast<double>(columns);
          for (int64_t j = 0; j < columns; ++j) square += (row[j] - mean) * (row[j] - mean) / static_cast<double>(columns);
          for (int64_t j = 0; j < columns; ++j)
            out[static_cast<size_t>(t * columns + j)] =
                (row[j] - mean) / std::sqrt(square + 0.01) * weight[static_cast<size_t>(j)] + bias[static_cast<size_t>(j)];
        }
        return weighted(out, dy);
      };
      const Vector wd = widened(w), zeros(w.size());
      const Tensor xt = bench.floats(type, rows, columns, x), dyt = bench.floats(type, rows, columns, dy);
      const Tensor wt = bench.floats(DType::f32, 1, columns, w), dx = bench.output(type, rows, columns);
      const std::vector<float> nothing(w.size());
      const Tensor dw = bench.floats(DType::f32, 1, columns, nothing), db = bench.floats(DType::f32, 1, columns, nothing);
      bench.run(NormGradient{dx, dw, centred ? db : Tensor{}, xt, dyt, wt, 0.01f});
      bench.check(dx, differences([&](const Vector& v) { return norm(v, wd, zeros); }, widened(x)), tolerance_of(type));
      bench.check(dw, differences([&](const Vector& v) { return norm(widened(x), v, zeros); }, wd), 2e-5);
      if (centred) bench.check(db, differences([&](const Vector& v) { return norm(widened(x), wd, v); }, zeros), 2e-5);
      // In the place of the gradient that it is made of.
      bench.run(NormGradient{dyt, dw, centred ? db : Tensor{}, xt, dyt, wt, 0.01f});
      CHECK(bench.read(dyt) == bench.read(dx));
    }
  }
}

TEST("gradients: norms sum their parameters' gradients over many rows") {
  Bench bench;
  Random random(20);
  const int64_t rows = 700, columns = 300;
  const auto x = random.uniforms(rows * columns), dy = random.uniforms(rows * columns), w = random.uniforms(columns);
  const Tensor xt = bench.floats(DType::f32, rows, columns, x), dyt = bench.floats(DType::f32, rows, columns, dy);
  const Tensor wt = bench.floats(DType::f32, 1, columns, w), dx = bench.output(DType::f32, rows, columns);
  const Tensor dw = bench.floats(DType::f32, 1, columns, std::vector<float>(w.size(), 2));
  bench.run(NormGradient{dx, dw, {}, xt, dyt, wt, 0.01f});
  Vector expected(w.size(), 2);
  for (int64_t t = 0; t < rows; ++t) {
    double square = 0;
    for (int64_t j = 0; j < columns; ++j) square += std::pow(x[static_cast<size_t>(t * columns + j)], 2);
    for (int64_t j = 0; j < columns; ++j) {
      const auto i = static_cast<size_t>(t * columns + j);
      expected[static_cast<size_t>(j)] += static_cast<double>(dy[i]) * x[i] / std::sqrt(square / columns + 0.01);
    }
  }
  bench.check(dw, expected, 1e-5);
}

TEST("gradients: activations and gates") {
  Bench bench;
  for (Activation kind : all_activations) {
    for (DType type : types) {
      Random random(30 + static_cast<uint64_t>(kind));
      const int64_t rows = random.integer(1, 4), columns = random.integer(1, 300);
      describe_case(static_cast<int>(kind), ", ", dtype_name(type), ", ", rows, " x ", columns);
      const auto x = rounded(random.uniforms(rows * columns, -5, 5), type),
                 up = rounded(random.uniforms(rows * columns), type);
      const auto dy = rounded(random.uniforms(rows * columns), type);
      const Tensor xt = bench.floats(type, rows, columns, x), upt = bench.floats(type, rows, columns, up);
      Vector by_x(x.size()), gated_by_x(x.size()), by_up(x.size());
      for (size_t i = 0; i < x.size(); ++i) {
        const double h = 1e-6, value = x[i];
        const double slope = (activate(value + h, kind) - activate(value - h, kind)) / (2 * h);
        by_x[i] = dy[i] * slope;
        gated_by_x[i] = by_x[i] * up[i];
        by_up[i] = dy[i] * activate(value, kind);
      }
      const Tensor plain = bench.floats(type, rows, columns, dy), gated = bench.floats(type, rows, columns, dy);
      bench.run(ActivateGradient{plain, xt, kind});
      bench.check(plain, by_x, tolerance_of(type));
      const Tensor dup = bench.output(type, rows, columns);
      bench.run(GateGradient{gated, dup, xt, upt, kind});
      bench.check(gated, gated_by_x, tolerance_of(type));
      bench.check(dup, by_up, tolerance_of(type));
    }
  }
}

TEST("gradients: attention with shared key heads, windows, soft caps, ALiBi and earlier keys") {
  Bench bench;
  for (uint64_t seed = 40; seed < 64; ++seed) {
    Random random(seed);
    const DType type = types[seed % 3];
    const int64_t sequences = random.integer(1, 2), kv_heads = random.integer(1, 2), heads = kv_heads * random.integer(1, 2);
    const bool long_one = seed % 6 == 0;
    const int64_t dim = random.integer(1, long_one ? 40 : 9),
                  queries = long_one ? random.integer(50, 70) : random.integer(1, 8);
    const int64_t start = random.flip() ? random.integer(0, 40) : 0, keys = start + queries + random.integer(0, 2);
    const int64_t window = random.flip() ? random.integer(1, keys) : 0;
    const float cap = random.flip() ? 2.0f : 0.0f, scale = 0.4f;
    const bool alibi = random.flip();
    describe_case("seed ", seed, ", ", dtype_name(type), ", ", sequences, " x ", queries, " of ", keys, " keys, ", heads,
                  "/", kv_heads, " heads of ", dim, ", window ", window, ", cap ", cap, alibi ? ", alibi" : "");
    const auto make = [&](int64_t rows, int64_t columns) {
      return rounded(random.uniforms(rows * columns, -1.5, 1.5), type);
    };
    const auto q = make(sequences * queries, heads * dim), k = make(sequences * keys, kv_heads * dim);
    const auto v = make(sequences * keys, kv_heads * dim), dout = make(sequences * queries, heads * dim);
    const auto slopes = random.uniforms(heads, 0, 0.5), sinks = random.uniforms(heads, -2, 3);
    const bool sunk = random.flip();
    const Vector sinksd = widened(sinks);
    const auto sunk_loss = [&](const Vector& qs, const Vector& ks, const Vector& vs, const Vector& drains) {
      double total = 0;
      for (int64_t s = 0; s < sequences; ++s) {
        for (int64_t h = 0; h < heads; ++h) {
          const int64_t shared = h / (heads / kv_heads);
          for (int64_t t = 0; t < queries; ++t) {
            const int64_t last = start + t, first = window > 0 ? std::max<int64_t>(0, last - window + 1) : 0;
            Vector p;
            double sum = sunk ? std::exp(drains[static_cast<size_t>(h)]) : 0;
            for (int64_t j = first; j <= last; ++j) {
              double dot = 0;
              for (int64_t d = 0; d < dim; ++d)
                dot += qs[static_cast<size_t>(((s * queries + t) * heads + h) * dim + d)] *
                       ks[static_cast<size_t>(((s * keys + j) * kv_heads + shared) * dim + d)];
              dot *= static_cast<double>(scale);
              if (cap > 0) dot = cap * std::tanh(dot / cap);
              if (alibi) dot += slopes[static_cast<size_t>(h)] * static_cast<double>(j - last);
              p.push_back(std::exp(dot));
              sum += p.back();
            }
            for (int64_t j = first; j <= last; ++j)
              for (int64_t d = 0; d < dim; ++d)
                total += p[static_cast<size_t>(j - first)] / sum *
                         vs[static_cast<size_t>(((s * keys + j) * kv_heads + shared) * dim + d)] *
                         dout[static_cast<size_t>(((s * queries + t) * heads + h) * dim + d)];
          }
        }
      }
      return total;
    };
    const auto loss = [&](const Vector& qs, const Vector& ks, const Vector& vs) { return sunk_loss(qs, ks, vs, sinksd); };
    const Tensor qt = bench.floats(type, sequences * queries, heads * dim, q),
                 kt = bench.floats(type, sequences * keys, kv_heads * dim, k);
    const Tensor vt = bench.floats(type, sequences * keys, kv_heads * dim, v);
    const Tensor doutt = bench.floats(type, sequences * queries, heads * dim, dout);
    const Tensor dq = bench.output(type, qt.rows, qt.columns), dk = bench.output(type, kt.rows, kt.columns);
    const Tensor dv = bench.output(type, vt.rows, vt.columns);
    const Tensor st = alibi ? bench.floats(DType::f32, 1, heads, slopes) : Tensor{};
    const Tensor sinkst = sunk ? bench.floats(DType::f32, 1, heads, sinks) : Tensor{};
    const Tensor dsinks = sunk ? bench.output(DType::f32, sequences * queries, heads) : Tensor{};
    bench.run(AttentionGradient{dq, dk, dv, dsinks, qt, kt, vt, doutt, st, sinkst, sequences, start, heads, kv_heads, dim,
                                scale, window, cap});
    // Of a long one some elements only.
    const Vector qd = widened(q), kd = widened(k), vd = widened(v);
    const auto check = [&](const Tensor& actual, const std::function<double(const Vector&)>& f, const Vector& at) {
      if (!long_one) return bench.check(actual, differences(f, at), tolerance_of(type));
      const auto values = bench.read(actual);
      for (int i = 0; i < 12; ++i) {
        const auto e = static_cast<size_t>(random.integer(0, static_cast<int64_t>(at.size()) - 1));
        Vector moved = at;
        moved[e] += 1e-5;
        const double above = f(moved);
        moved[e] -= 2e-5;
        CHECK_CLOSE(values[e], (above - f(moved)) / 2e-5, tolerance_of(type) * 4);
      }
    };
    check(dq, [&](const Vector& x) { return loss(x, kd, vd); }, qd);
    check(dk, [&](const Vector& x) { return loss(qd, x, vd); }, kd);
    check(dv, [&](const Vector& x) { return loss(qd, kd, x); }, vd);
    if (!sunk) continue;
    const Tensor of_sinks = bench.floats(DType::f32, 1, heads, std::vector<float>(static_cast<size_t>(heads)));
    bench.run(AccumulateRows{of_sinks, dsinks});
    check(of_sinks, [&](const Vector& x) { return sunk_loss(qd, kd, vd, x); }, sinksd);
  }
}

TEST("gradients: columns back into a fused projection, and dot products of rows") {
  Bench bench;
  Random random(70);
  for (DType type : types) {
    const int64_t rows = 5, groups = 3, first = 2, count = 4, stride = 9;
    const auto part = rounded(random.uniforms(rows * groups * count), type);
    const Tensor x = bench.floats(type, rows, groups * count, part), fused = bench.output(type, rows, groups * stride);
    bench.run(PutColumns{fused, x, first, count, stride});
    const Tensor again = bench.output(type, rows, groups * count);
    bench.run(TakeColumns{again, fused, first, count, stride});
    CHECK(bench.read(again) == part);
    CHECK(std::isnan(bench.read(fused)[0]) && std::isnan(bench.read(fused)[first + count]));
    const auto other = rounded(random.uniforms(rows * groups * count), type);
    const Tensor y = bench.floats(type, rows, groups * count, other), dots = bench.output(DType::f32, 1, rows);
    bench.run(RowDots{dots, x, y});
    Vector expected(rows);
    for (size_t i = 0; i < part.size(); ++i) expected[i / (groups * count)] += static_cast<double>(part[i]) * other[i];
    bench.check(dots, expected, 1e-5);
  }
}

TEST("gradients: the relative error of rows") {
  Bench bench;
  for (const auto& [type, typical] : {std::pair{types[0], 0.0f}, {types[1], 12.0f}, {types[2], 0.0f}, {types[0], 12.0f}}) {
    Random random(80);
    const int64_t rows = 4, columns = 37;
    const auto x = rounded(random.uniforms(rows * columns), type), z = rounded(random.uniforms(rows * columns), type);
    const auto error = [&](const Vector& values, int64_t t) {
      double gap = 0, norm = 0;
      for (int64_t j = 0; j < columns; ++j) {
        const auto i = static_cast<size_t>(t * columns + j);
        gap += (values[i] - z[i]) * (values[i] - z[i]);
        norm += static_cast<double>(z[i]) * z[i];
      }
      return gap / (typical > 0 && norm > typical ? std::sqrt(typical * norm) : norm);
    };
    const Tensor xt = bench.floats(type, rows, columns, x), zt = bench.floats(type, rows, columns, z);
    const Tensor errors = bench.output(DType::f32, 1, rows);
    Vector expected(rows);
    for (int64_t t = 0; t < rows; ++t) expected[static_cast<size_t>(t)] = error(widened(x), t);
    bench.run(RelativeErrors{errors, {}, xt, zt, 1, typical});
    bench.check(errors, expected, 1e-5);
    const Tensor again = bench.output(DType::f32, 1, rows);
    for (DType out : {type, DType::f32}) {
      const Tensor dx = bench.output(out, rows, columns);
      bench.run(RelativeErrors{again, dx, xt, zt, 0.25f, typical});
      CHECK(bench.read(again) == bench.read(errors));
      const auto total = [&](const Vector& v) { return 0.25 * (error(v, 0) + error(v, 1) + error(v, 2) + error(v, 3)); };
      bench.check(dx, differences(total, widened(x)), tolerance_of(out));
    }
    CHECK(bench.read(xt) == x);
  }
}

TEST("gradients: the divergence of two models' distributions") {
  Bench bench;
  for (uint64_t seed = 90; seed < 99; ++seed) {
    Random random(seed);
    const DType type = types[seed % 3];
    const int64_t tokens = random.integer(1, 5), words = random.integer(1, 90), columns = random.integer(1, 12);
    const int64_t other_columns = random.integer(1, 12);
    const float cap = random.flip() ? 3.0f : 0.0f;
    const bool biased = random.flip();
    describe_case("seed ", seed, ", ", dtype_name(type), ", ", tokens, " x ", words, " x ", columns, ", cap ", cap,
                  biased ? ", biases" : "");
    const auto x = rounded(random.uniforms(tokens * columns, -2, 2), type),
               head = rounded(random.uniforms(words * columns, -2, 2), type);
    const auto y = rounded(random.uniforms(tokens * other_columns, -2, 2), type);
    const auto other = rounded(random.uniforms(words * other_columns, -2, 2), type);
    const auto bias = random.uniforms(words), other_bias = random.uniforms(words);
    const auto logs = [&](const Vector& values, const std::vector<float>& matrix, const std::vector<float>& added,
                          int64_t width, int64_t t) {
      Vector logits(static_cast<size_t>(words));
      double sum = 0;
      for (int64_t w = 0; w < words; ++w) {
        double logit = biased ? added[static_cast<size_t>(w)] : 0;
        for (int64_t j = 0; j < width; ++j)
          logit += values[static_cast<size_t>(t * width + j)] * matrix[static_cast<size_t>(w * width + j)];
        if (cap > 0) logit = cap * std::tanh(logit / cap);
        logits[static_cast<size_t>(w)] = logit;
        sum += std::exp(logit);
      }
      for (double& logit : logits) logit -= std::log(sum);
      return logits;
    };
    const auto divergence = [&](const Vector& values, int64_t t) {
      const Vector q = logs(values, head, bias, columns, t), p = logs(widened(y), other, other_bias, other_columns, t);
      double total = 0;
      for (size_t w = 0; w < p.size(); ++w) total += std::exp(p[w]) * (p[w] - q[w]);
      return total;
    };
    const Tensor xt = bench.floats(type, tokens, columns, x), ht = bench.floats(type, words, columns, head);
    const Tensor yt = bench.floats(type, tokens, other_columns, y), ot = bench.floats(type, words, other_columns, other);
    const Tensor bt = biased ? bench.floats(DType::f32, 1, words, bias) : Tensor{};
    const Tensor obt = biased ? bench.floats(DType::f32, 1, words, other_bias) : Tensor{};
    const Tensor losses = bench.output(DType::f32, 1, tokens), dx = bench.output(type, tokens, columns);
    bench.run(KlDivergence{losses, dx, xt, ht, bt, yt, ot, obt, cap, 0.5f});
    Vector expected(static_cast<size_t>(tokens));
    for (int64_t t = 0; t < tokens; ++t) expected[static_cast<size_t>(t)] = divergence(widened(x), t);
    bench.check(losses, expected, 3e-5);
    const auto total = [&](const Vector& v) {
      double sum = 0;
      for (int64_t t = 0; t < tokens; ++t) sum += 0.5 * divergence(v, t);
      return sum;
    };
    if (words > 1) bench.check(dx, differences(total, widened(x)), tolerance_of(type));
    bench.run(KlDivergence{losses, {}, xt, ht, bt, yt, ot, obt, cap, 0.5f});
    bench.check(losses, expected, 3e-5);
  }
}

TEST("gradients: a divergence of more tokens than are held at once") {
  Bench bench;
  Random random(99);
  const int64_t tokens = 1500, words = 40, columns = 8;
  const Tensor x = bench.floats(DType::f32, tokens, columns, random.uniforms(tokens * columns));
  const Tensor y = bench.floats(DType::f32, tokens, columns, random.uniforms(tokens * columns));
  const Tensor head = bench.floats(DType::f32, words, columns, random.uniforms(words * columns));
  const Tensor losses = bench.output(DType::f32, 1, tokens), dx = bench.output(DType::f32, tokens, columns);
  bench.run(KlDivergence{losses, dx, x, head, {}, y, head, {}, 0, 1});
  const auto all = bench.read(losses), gradient = bench.read(dx);
  for (int64_t t : {int64_t{0}, int64_t{1023}, int64_t{1024}, tokens - 1}) {
    const Tensor one = bench.output(DType::f32, 1, 1), by_x = bench.output(DType::f32, 1, columns);
    bench.run(KlDivergence{one, by_x, x.row_range(t, 1), head, {}, y.row_range(t, 1), head, {}, 0, 1});
    CHECK_CLOSE(bench.read(one)[0], all[static_cast<size_t>(t)], 1e-6);
    for (int64_t j = 0; j < columns; ++j)
      CHECK_CLOSE(bench.read(by_x)[static_cast<size_t>(j)], gradient[static_cast<size_t>(t * columns + j)], 1e-6);
  }
}

TEST("gradients: Adam's steps, and zeros that stay") {
  Bench bench;
  Random random(100);
  const int64_t rows = 3, columns = 41;
  auto w = random.uniforms(rows * columns);
  for (size_t i = 0; i < w.size(); i += 3) w[i] = 0;
  for (bool keep_zeros : {true, false}) {
    const std::vector<float> nothing(w.size());
    const Tensor weight = bench.floats(DType::f32, rows, columns, w),
                 first = bench.floats(DType::f32, rows, columns, nothing);
    const Tensor second = bench.floats(DType::f32, rows, columns, nothing);
    Vector expected = widened(w), m(w.size()), v(w.size());
    for (int64_t step = 1; step <= 5; ++step) {
      const auto g = random.uniforms(rows * columns);
      bench.run(Adam{weight, first, second, bench.floats(DType::f32, rows, columns, g), 0.01f, 0.9f, 0.95f, 1e-8f, 0.1f,
                     step, keep_zeros});
      for (size_t i = 0; i < w.size(); ++i) {
        m[i] = 0.9 * m[i] + 0.1 * g[i];
        v[i] = 0.95 * v[i] + 0.05 * g[i] * g[i];
        const double direction = m[i] / (1 - std::pow(0.9, step)) / (std::sqrt(v[i] / (1 - std::pow(0.95, step))) + 1e-8);
        if (!keep_zeros || expected[i] != 0) expected[i] -= 0.01 * (direction + 0.1 * expected[i]);
      }
    }
    bench.check(weight, expected, 1e-5);
    if (!keep_zeros) continue;
    const auto actual = bench.read(weight);
    for (size_t i = 0; i < w.size(); ++i) CHECK_EQUAL(actual[i] == 0, w[i] == 0);
  }
}
