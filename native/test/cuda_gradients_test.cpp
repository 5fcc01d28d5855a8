// Gradients and the optimizer of the CUDA backend against those of the CPU backend, as in cuda_test.cpp.
#include <algorithm>
#include <cstring>

#include "test/activations.h"
#include "test/twins.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

TEST("cuda gradients: products and sums over rows in every type, with operands in host memory") {
  on_every_gpu([](Both& both) {
    uint64_t seed = 0;
    for (DType x_type : float_types) {
      for (DType w_type : float_types) {
        Random random(++seed);
        const int64_t tokens = seed == 4 ? 600 : random.integer(1, 70), in = random.integer(1, 70),
                      outs = random.integer(1, 70);
        describe_case(both.name, ", seed ", seed, ", ", dtype_name(x_type), " ", dtype_name(w_type));
        const Twin dy = both.random(random, x_type, tokens, outs + 3).columns(2, outs);
        const Twin w = both.random(random, w_type, outs, in + 1).columns(1, in);
        for (DType out_type : {x_type, DType::f32, DType::bf16}) {
          const Twin wide = both.output(out_type, tokens, in + 5), dx = wide.columns(3, in);
          both.run([&](Backend& b, const auto& at) { b.run(Multiply{at(dx), at(dy), at(w)}); });
          CHECK_TWIN(wide, tolerance_of(out_type));
          const Tensor near = both.gpu.empty(out_type, tokens, in), mapped = both.gpu.empty(out_type, tokens, in);
          both.gpu.run(Multiply{near, dy.gpu, w.gpu});
          both.gpu.run(Multiply{mapped, dy.gpu, w.cpu});
          CHECK(both.gpu.read(mapped) == both.gpu.read(near));
        }
        const Twin x = both.random(random, w_type, tokens, in + 2).columns(1, in);
        const Twin sum = both.random(random, DType::f32, outs, in), sums = both.random(random, DType::f32, 1, outs);
        both.run([&](Backend& b, const auto& at) {
          b.run(AccumulateProduct{at(sum), at(dy), at(x), 0.25f});
          b.run(AccumulateRows{at(sums), at(dy)});
          // An expert that no token went to.
          b.run(AccumulateProduct{at(sum), at(dy).row_range(0, 0), at(x).row_range(0, 0), 0.25f});
          b.run(AccumulateRows{at(sums), at(dy).row_range(0, 0)});
          b.run(Multiply{at(x).row_range(0, 0), at(dy).row_range(0, 0), at(w)});
        });
        CHECK_TWIN(sum, 2e-6);
        CHECK_TWIN(sums, 2e-6);
      }
    }
  });
}

TEST("cuda gradients: a weight in host memory that goes to the device in pieces") {
  on_every_gpu([](Both& both) {
    Random random(30);
    const int64_t outs = 1 << 20, in = 17;  // of which 16 go at once
    const Twin dy = both.random(random, DType::bf16, 1, outs), w = both.random(random, DType::bf16, outs, in);
    const Twin dx = both.output(DType::f32, 1, in);
    both.cpu.run(Multiply{dx.cpu, dy.cpu, w.cpu});
    both.gpu.run(Multiply{dx.gpu, dy.gpu, w.cpu});
    describe_case(both.name);
    CHECK_TWIN(dx, 1e-5);
  });
}

TEST("cuda gradients: norms, activations, gates, columns, dot products and errors of rows") {
  on_every_gpu([](Both& both) {
    for (DType type : float_types) {
      for (uint64_t seed = 1; seed <= 3; ++seed) {
        Random random(seed);
        const int64_t rows = seed == 3 ? 270 : random.integer(1, 40), columns = 12 * random.integer(1, seed == 3 ? 3 : 25);
        describe_case(both.name, ", ", dtype_name(type), ", ", rows, " x ", columns);
        const double tolerance = tolerance_of(type);
        const DType other = seed == 2 ? DType::f32 : type;
        const Twin x = both.random(random, type, rows, columns + 3, -2, 5).columns(1, columns);
        const Twin y = both.random(random, other, rows, columns), weight = both.random(random, DType::f32, 1, columns);
        for (bool centred : {true, false}) {
          const Twin dy = both.random(random, other, rows, columns), dx = both.output(type, rows, columns + 2);
          const Twin dweight = both.random(random, DType::f32, 1, columns),
                     dbias = both.random(random, DType::f32, 1, columns);
          for (const Twin& into : {dx.columns(1, columns), dy})
            both.run([&](Backend& b, const auto& at) {
              b.run(NormGradient{at(into), at(dweight), centred ? at(dbias) : Tensor{}, at(x), at(dy), at(weight), 1e-5f});
            });
          CHECK_TWIN(dx, tolerance);
          CHECK_TWIN(dy, tolerance_of(other));
          CHECK_TWIN(dweight, 4e-6);
          CHECK_TWIN(dbias, 2e-6);
        }
        const Twin steep = both.random(random, type, rows, columns, -6, 6);
        for (Activation kind : all_activations) {
          const Twin wide = both.random(random, other, rows, columns + 4), dy = wide.columns(2, columns);
          both.run([&](Backend& b, const auto& at) { b.run(ActivateGradient{at(dy), at(steep), kind}); });
          CHECK_TWIN(wide, tolerance_of(other));
          const Twin gated = both.random(random, type, rows, columns), dup = both.output(other, rows, columns);
          both.run([&](Backend& b, const auto& at) { b.run(GateGradient{at(gated), at(dup), at(steep), at(y), kind}); });
          CHECK_TWIN(gated, tolerance);
          CHECK_TWIN(dup, tolerance_of(other));
        }
        const Twin fused = both.output(type, rows, 4 * columns);
        both.run([&](Backend& b, const auto& at) { b.run(PutColumns{at(fused), at(x), 5, 12, 48}); });
        CHECK_TWIN(fused, 0);
        const Twin dots = both.output(DType::f32, 1, rows), errors = both.output(DType::f32, 1, rows);
        const Twin plain = both.output(DType::f32, 1, rows), dx = both.output(type, rows, columns);
        both.run([&](Backend& b, const auto& at) {
          b.run(RowDots{at(dots), at(x), at(y)});
          b.run(RelativeErrors{at(plain), {}, at(x), at(y), 1, 5});
          b.run(RelativeErrors{at(errors), at(dx), at(x), at(y), 0.5f, 5});
        });
        CHECK_TWIN(dots, 2e-6);
        CHECK_TWIN(errors, 2e-6);
        CHECK_TWIN(dx, tolerance);
        CHECK(both.gpu.read(plain.gpu) == both.gpu.read(errors.gpu));
      }
    }
  });
}

namespace {

// The tensors of an attention and its gradients, on both devices.
struct AttentionTwins {
  Twin q, k, v, dout, slopes, sinks, dq, dk, dv, dsinks;
  AttentionGradient settings{};

  void run(Both& both) const {
    both.run([&](Backend& b, const auto& at) {
      AttentionGradient o = settings;
      o.q = at(q);
      o.k = at(k);
      o.v = at(v);
      o.dout = at(dout);
      if (slopes.cpu) o.slopes = at(slopes);
      if (sinks.cpu) {
        o.sinks = at(sinks);
        o.dsinks = at(dsinks);
      }
      o.dq = at(dq);
      o.dk = at(dk);
      o.dv = at(dv);
      b.run(o);
    });
  }
};

}  // namespace

TEST("cuda gradients: attention with shared heads, windows, soft caps, ALiBi, sinks and earlier keys") {
  on_every_gpu([](Both& both) {
    uint64_t seed = 0;
    for (DType type : float_types) {
      for (int64_t head_dim : {5, 16, 64, 72, 128, 200, 256, 300}) {
        Random random(++seed);
        // Of the kernels of 16 bits, which are alike, one type sees fewer sizes.
        if ((type == DType::f16 && head_dim % 64 != 0) || (few_cases() && seed % 3 != 0)) continue;
        const int64_t queries = head_dim == 16 ? 150 : random.integer(1, head_dim > 128 ? 50 : 90);
        // Of the last sequences of a cache some keys are still to come.
        const int64_t start = seed % 3 == 1 ? 0 : random.integer(0, 60), keys = start + queries + (seed % 5 == 0 ? 7 : 0);
        const int64_t batch = random.integer(1, 2), kv_heads = random.integer(1, 2), heads = kv_heads * random.integer(1, 2);
        AttentionTwins t;
        AttentionGradient& o = t.settings;
        o.sequences = batch;
        o.start = start;
        o.heads = heads;
        o.kv_heads = kv_heads;
        o.head_dim = head_dim;
        o.scale = static_cast<float>(1 / std::sqrt(head_dim));
        o.window = seed % 4 < 2 ? random.integer(1, start + queries) : 0;
        o.softcap = seed % 4 == 1 ? 2.0f : 0.0f;
        describe_case(both.name, ", seed ", seed, ", ", dtype_name(type), ", heads of ", head_dim, ", ", queries,
                      " queries from ", start, " of ", keys, " keys, window ", o.window, ", cap ", o.softcap);
        if (seed % 2 == 1) t.slopes = both.random(random, DType::f32, 1, heads, 0, 0.2);
        if (seed % 3 == 0) {
          t.sinks = both.random(random, DType::f32, 1, heads, -2, 4);
          t.dsinks = both.output(DType::f32, batch * queries, heads);
        }
        // Views of one fused projection, or of an odd width.
        const int64_t gap = seed % 2 == 0 ? 8 : 3, q_width = heads * head_dim, k_width = kv_heads * head_dim;
        const auto of_queries = [&] {
          return both.random(random, type, batch * queries, q_width + gap, -2, 2).columns(0, q_width);
        };
        const auto of_keys = [&] {
          auto values = random.uniforms(batch * keys * (k_width + gap), -2, 2);
          for (int64_t s = 0; s < batch; ++s)  // what nobody sees
            std::fill(values.begin() + (s * keys + start + queries) * (k_width + gap),
                      values.begin() + (s + 1) * keys * (k_width + gap), NAN);
          return both.floats(type, batch * keys, k_width + gap, values).columns(gap, k_width);
        };
        t.q = of_queries();
        t.k = of_keys();
        t.v = of_keys();
        t.dout = of_queries();
        const Twin dq = both.output(type, batch * queries, q_width + gap),
                   dk = both.output(type, batch * keys, k_width + gap);
        t.dq = dq.columns(gap, q_width);
        t.dk = dk.columns(0, k_width);
        t.dv = both.output(type, batch * keys, k_width);
        t.run(both);
        const double tolerance = type == DType::f32 ? 2e-5 : 2 * tolerance_of(type);
        CHECK_TWIN(dq, tolerance);
        CHECK_TWIN(dk, tolerance);
        CHECK_TWIN(t.dv, tolerance);
        if (t.sinks.cpu) CHECK_TWIN(t.dsinks, tolerance);
        if (head_dim != 64) continue;
        const auto first = both.gpu.read(dk.gpu), second = both.gpu.read(t.dv.gpu);
        t.run(both);  // the same on every run
        const auto again = both.gpu.read(dk.gpu);
        CHECK(std::memcmp(again.data(), first.data(), first.size() * sizeof(float)) == 0);
        CHECK(both.gpu.read(t.dv.gpu) == second);
      }
    }
  });
}

TEST("cuda gradients: small gradients of attention in float16 are not lost") {
  on_every_gpu([](Both& both) {
    Random random(50);
    const int64_t tokens = 150, head_dim = 16;
    describe_case(both.name);
    AttentionTwins t;
    t.settings.sequences = t.settings.heads = t.settings.kv_heads = 1;
    t.settings.head_dim = head_dim;
    t.settings.scale = 25;
    const DType f16 = DType::f16;
    t.q = both.random(random, f16, tokens, head_dim, -0.02, 0.02);
    t.k = both.random(random, f16, tokens, head_dim, -2, 2);
    t.v = both.random(random, f16, tokens, head_dim, -2, 2);
    t.dout = both.random(random, f16, tokens, head_dim, -3e-4, 3e-4);
    t.dq = both.output(f16, tokens, head_dim);
    t.dk = both.output(f16, tokens, head_dim);
    t.dv = both.output(f16, tokens, head_dim);
    t.run(both);
    CHECK_TWIN(t.dq, 1e-3);
  });
}

TEST("cuda gradients: the divergence of two models' distributions") {
  on_every_gpu([](Both& both) {
    uint64_t seed = 60;
    for (DType x_type : float_types) {
      for (DType head_type : float_types) {
        Random random(++seed);
        const bool many = seed == 61;  // more tokens than are held at once
        const int64_t tokens = many ? 1030 : random.integer(1, 20), words = many ? 20 : random.integer(2, 700);
        const int64_t columns = random.integer(1, 12), other_columns = random.integer(1, 12);
        const float cap = seed % 2 == 0 ? 3.0f : 0.0f;
        describe_case(both.name, ", seed ", seed, ", ", dtype_name(x_type), " ", dtype_name(head_type), ", ", tokens, " x ",
                      words, ", cap ", cap);
        const Twin x = both.random(random, x_type, tokens, columns + 1, -2, 2).columns(1, columns);
        const Twin head = both.random(random, head_type, words, columns, -2, 2);
        const Twin target = both.random(random, x_type, tokens, other_columns, -2, 2);
        const Twin target_head = both.random(random, x_type, words, other_columns, -2, 2);
        const Twin bias = both.random(random, head_type, 1, words), target_bias = both.random(random, DType::f32, 1, words);
        const Twin losses = both.output(DType::f32, 1, tokens), again = both.output(DType::f32, 1, tokens);
        for (DType out_type : {x_type, DType::f32, DType::f16}) {
          const Twin dx = both.output(out_type, tokens, columns + 2), window = dx.columns(1, columns);
          both.run([&](Backend& b, const auto& at) {
            b.run(KlDivergence{at(losses), at(window), at(x), at(head), seed % 3 == 0 ? at(bias) : Tensor{}, at(target),
                               at(target_head), seed % 3 == 1 ? at(target_bias) : Tensor{}, cap, 0.5f});
            b.run(KlDivergence{at(again),
                               {},
                               at(x),
                               at(head),
                               seed % 3 == 0 ? at(bias) : Tensor{},
                               at(target),
                               at(target_head),
                               seed % 3 == 1 ? at(target_bias) : Tensor{},
                               cap,
                               0.5f});
          });
          CHECK_TWIN(losses, 1e-5);
          CHECK(both.gpu.read(again.gpu) == both.gpu.read(losses.gpu));
          // Gradients by logits may meet a head of 16 bits in its type.
          CHECK_TWIN(dx, std::max(tolerance_of(out_type), tolerance_of(head_type)));
          if (many) break;
        }
      }
    }
  });
}

TEST("cuda gradients: Adam's steps, and zeros that stay") {
  on_every_gpu([](Both& both) {
    for (bool keep_zeros : {true, false}) {
      Random random(80);
      const int64_t rows = 7, columns = 300;
      auto values = random.uniforms(rows * columns);
      for (size_t i = 0; i < values.size(); i += 3) values[i] = 0;
      const std::vector<float> nothing(values.size());
      const Twin weight = both.floats(DType::f32, rows, columns, values);
      const Twin first = both.floats(DType::f32, rows, columns, nothing),
                 second = both.floats(DType::f32, rows, columns, nothing);
      for (int64_t step = 1; step <= 4; ++step) {
        const Twin gradient = both.random(random, DType::f32, rows, columns);
        both.run([&](Backend& b, const auto& at) {
          b.run(Adam{at(weight), at(first), at(second), at(gradient), 0.01f, 0.9f, 0.95f, 1e-8f, 0.1f, step, keep_zeros});
        });
      }
      describe_case(both.name, keep_zeros ? ", zeros stay" : "");
      CHECK_TWIN(weight, 2e-6);
      CHECK_TWIN(first, 2e-6);
      CHECK_TWIN(second, 2e-6);
      const auto actual = both.gpu.read(weight.gpu);
      for (size_t i = 0; i < values.size(); ++i) CHECK_EQUAL(actual[i] == 0, keep_zeros && values[i] == 0);
    }
  });
}
