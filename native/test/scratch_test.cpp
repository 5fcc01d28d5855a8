// What the scratch model says that operations take, against what they take.
#include <algorithm>
#include <array>

#include "cpu/cpu_backend.h"
#include "cpu/dispatch.h"
#include "cpu/scratch_model.h"
#include "test/on_device.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

constexpr int threads = 2;

// Runs the operation on a backend of its own, whose pool is empty. The model may say more by `slack`, a share; and little less, as
// arrays that are taken one after another may get somewhat larger blocks that are there.
template <typename Operation>
void check_scratch(const char* name, double slack, const Operation& make) {
  const cpu::Level level = cpu::selected_level();
  const auto backend = std::make_shared<cpu::CpuBackend>(threads, level);
  OnDevice cpu(backend);
  Random random(1);
  const auto operation = make(cpu, random);
  const auto said = static_cast<double>(cpu::CpuScratch(threads, level).bytes(operation));
  cpu.run(operation);
  const auto taken = static_cast<double>(backend->scratch_pool().peak_bytes());
  describe_case(name, ": takes ", taken, ", said ", said);
  CHECK(taken <= 1.05 * said && said <= (1 + slack) * taken + 65536);
}

Tensor random_floats(OnDevice& cpu, Random& random, DType dtype, int64_t rows, int64_t columns) {
  return cpu.floats(dtype, rows, columns, random.uniforms(rows * columns));
}

// A factor that the solver can use: only what is above the diagonal is looked at.
Tensor identity(OnDevice& cpu, int64_t n) {
  std::vector<float> values(static_cast<size_t>(n * n), 0.001f);
  for (int64_t j = 0; j < n; ++j) values[static_cast<size_t>(j * n + j)] = 1;
  return cpu.floats(DType::f32, n, n, values);
}

}  // namespace

TEST("scratch model: products") {
  for (DType type : {DType::f32, DType::bf16}) {
    for (const auto [tokens, in, out] :
         {std::array<int64_t, 3>{50, 70, 90}, {1500, 576, 1536}, {300, 3000, 700}, {0, 64, 64}}) {
      check_scratch("linear", 3, [&, tokens = tokens, in = in, out = out](OnDevice& cpu, Random& random) {
        // With zeros in half the cases the product skips them.
        auto w = random.uniforms(out * in);
        for (size_t i = 0; i < w.size(); ++i)
          if (in == 576 && i % 4 < 2) w[i] = 0;
        return Linear{cpu.empty(type, tokens, out), random_floats(cpu, random, type, tokens, in),
                      cpu.floats(type, out, in, w), random_floats(cpu, random, type, 1, out)};
      });
      check_scratch("Gram matrix", 0, [&, tokens = tokens, in = in](OnDevice& cpu, Random& random) {
        const Tensor gram = cpu.empty(DType::f32, in, in);
        cpu.run(Fill{gram, 0});
        return AccumulateGram{gram, random_floats(cpu, random, type, tokens, in), 1};
      });
      check_scratch("product", 0, [&, tokens = tokens, in = in, out = out](OnDevice& cpu, Random& random) {
        const Tensor sums = cpu.empty(DType::f32, in, out);
        cpu.run(Fill{sums, 0});
        return AccumulateProduct{sums, random_floats(cpu, random, type, tokens, in),
                                 random_floats(cpu, random, type, tokens, out), 1};
      });
    }
  }
}

TEST("scratch model: attention and loss") {
  check_scratch("attention", 0, [](OnDevice& cpu, Random& random) {
    const Tensor q = random_floats(cpu, random, DType::f32, 2 * 100, 4 * 32), out = cpu.empty(DType::f32, 2 * 100, 4 * 32);
    const Tensor k = random_floats(cpu, random, DType::f32, 2 * 300, 2 * 32);
    return Attention{out, q, k, k, {}, {}, 2, 200, 4, 2, 32, 0.2f, 0, 0};
  });
  for (const int64_t tokens : {100, 1100}) {
    check_scratch("cross entropy", 0, [&](OnDevice& cpu, Random& random) {
      const std::vector<int32_t> ids(static_cast<size_t>(tokens), 3);
      return CrossEntropy{cpu.empty(DType::f32, 1, tokens),
                          random_floats(cpu, random, DType::f32, tokens, 64),
                          random_floats(cpu, random, DType::f32, 5000, 64),
                          {},
                          cpu.upload(DType::i32, 1, tokens, ids.data()),
                          0};
    });
  }
}

TEST("scratch model: factor, triangular products, solver") {
  for (const int64_t n : {100, 700, 1500}) {
    check_scratch("factor", 0.1, [&](OnDevice& cpu, Random&) {
      return FactorHessian{identity(cpu, n), cpu.empty(DType::u8, 1, n), cpu.empty(DType::f64, 1, factor_report::count),
                           0.01};
    });
    for (const bool inverse : {false, true})
      check_scratch("triangular product", 0.1, [&](OnDevice& cpu, Random& random) {
        return TriangularProduct{cpu.empty(DType::f32, 400, n), random_floats(cpu, random, DType::f32, 400, n),
                                 identity(cpu, n), inverse, n == 700};
      });
    check_scratch("conjugate gradients", 0.1, [&](OnDevice& cpu, Random& random) {
      const std::vector<uint8_t> none(static_cast<size_t>(400 * n), 0);
      return ConjugateGradients{random_floats(cpu, random, DType::f32, 400, n),
                                random_floats(cpu, random, DType::f32, 400, n),
                                cpu.upload(DType::u8, 400, n, none.data()),
                                identity(cpu, n),
                                cpu.empty(DType::f64, 1, descent_report::count),
                                0,
                                2};
    });
    for (int kind = 0; kind < 4; ++kind) {
      const double slack = kind == 0 ? 0.7 : 0.05;  // by sparsity counts that the pool does not hold
      check_scratch("solver", slack, [&](OnDevice& cpu, Random& random) {
        const int64_t rows = 900;
        const Tensor dead = cpu.empty(DType::u8, 1, n);
        cpu.run([&](Backend&) { std::fill_n(dead.data<uint8_t>(), n, 0); });
        Tensor given;
        if (kind == 2) {
          const std::vector<uint8_t> mask(static_cast<size_t>(rows * n), 1);
          given = cpu.upload(DType::u8, rows, n, mask.data());
        }
        return PruneSparsegpt{random_floats(cpu, random, DType::f32, rows, n),
                              cpu.empty(DType::u8, rows, n),
                              cpu.empty(DType::f64, 1, 1),
                              identity(cpu, n),
                              dead,
                              given,
                              0.5,
                              kind == 0 ? 0 : 2,
                              kind == 0 ? 0 : 4,
                              128,
                              kind == 3 ? 4 : 0};
      });
    }
  }
}

TEST("scratch model: masks") {
  for (int kind = 0; kind < 3; ++kind)
    check_scratch("mask", 2, [&](OnDevice& cpu, Random& random) {
      return SelectMask{cpu.empty(DType::u8, 70, 400),
                        random_floats(cpu, random, DType::f32, 70, 400),
                        0.5,
                        kind == 2 ? 2 : 0,
                        kind == 2 ? 4 : 0,
                        kind == 1,
                        false};
    });
  check_scratch("scores", 0, [&](OnDevice& cpu, Random& random) {
    return Scores{cpu.empty(DType::f32, 70, 400), random_floats(cpu, random, DType::f32, 70, 400),
                  cpu.floats(DType::f32, 1, 400, std::vector<float>(400, 2.0f))};
  });
}
