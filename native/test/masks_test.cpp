// Choosing weights by scores and removing them, against a stable sort.
#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "cpu/cpu_backend.h"
#include "cpu/selection.h"
#include "test/on_device.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

// The `count` smallest of each group of so many, the first ones of equal.
std::vector<uint8_t> smallest(const std::vector<float>& scores, int64_t group, int64_t count) {
  std::vector<uint8_t> mask(scores.size());
  for (size_t begin = 0; begin < scores.size(); begin += static_cast<size_t>(group)) {
    std::vector<size_t> order(static_cast<size_t>(group));
    std::iota(order.begin(), order.end(), begin);
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return std::fabs(scores[a]) < std::fabs(scores[b]); });
    for (int64_t i = 0; i < count; ++i) mask[order[static_cast<size_t>(i)]] = 1;
  }
  return mask;
}

// With ties, and in half of the cases so many of them that they are counted by their low bits.
std::vector<float> random_weights(Random& random, int64_t count) {
  auto w = random.uniforms(count);
  const double steps = random.flip() ? 50 : 1e6;
  for (float& value : w) value = static_cast<float>(std::nearbyint(value * steps) / steps);
  return w;
}

}  // namespace

TEST("masks: every choice, on any number of threads") {
  for (int threads : {1, 2, 3}) {
    OnDevice cpu(make_cpu_backend(threads));
    for (uint64_t seed = 1; seed <= 40; ++seed) {
      Random random(seed);
      const bool large = seed % 20 == 0;
      const int64_t rows = large ? random.integer(300, 400) : random.integer(1, 80);
      const int64_t columns = 4 * (large ? random.integer(200, 300) : random.integer(1, 30)), all = rows * columns;
      auto w = random_weights(random, all);
      if (large) std::fill(w.begin() + all / 4, w.begin() + all / 4 * 3, 0.4375f);
      const double sparsity = seed % 7 == 0 ? static_cast<double>(random.integer(0, 1)) : random.uniform();
      const Tensor scores = cpu.floats(DType::f32, rows, columns, w), mask = cpu.empty(DType::u8, rows, columns);
      const auto choose = [&](int n, int m, bool by_row, bool inclusive) {
        cpu.run([&](Backend&) { std::fill_n(mask.data<uint8_t>(), all, 9); });
        cpu.run(SelectMask{mask, scores, sparsity, n, m, by_row, inclusive});
        return cpu.read_as<uint8_t>(mask);
      };
      describe_case(threads, " threads, seed ", seed, ", ", rows, " x ", columns, ", sparsity ", sparsity);
      const auto share = [&](int64_t total) { return static_cast<int64_t>(static_cast<double>(total) * sparsity); };
      CHECK(choose(0, 0, false, false) == smallest(w, all, share(all)));
      CHECK(choose(0, 0, true, false) == smallest(w, columns, share(columns)));

      // Up to the score of that rank, and all that equal it.
      std::vector<uint8_t> inclusive(w.size());
      if (sparsity > 0) {
        std::vector<float> sorted(w.size());
        std::transform(w.begin(), w.end(), sorted.begin(), [](float x) { return std::fabs(x); });
        std::sort(sorted.begin(), sorted.end());
        const float threshold = sorted[static_cast<size_t>(std::min(share(all), all - 1))];
        for (size_t i = 0; i < w.size(); ++i) inclusive[i] = std::fabs(w[i]) <= threshold;
      }
      CHECK(choose(0, 0, false, true) == inclusive);

      std::vector<uint8_t> groups(w.size());
      cpu::select_groups(w.data(), all, 2, 4, groups.data());
      CHECK(choose(2, 4, false, false) == groups);
      int64_t wrong = 0;
      for (size_t i = 0; i < w.size(); i += 4) {
        float gone = 0, kept = INFINITY;
        for (size_t j = i; j < i + 4; ++j)
          groups[j] != 0 ? gone = std::max(gone, std::fabs(w[j])) : kept = std::min(kept, std::fabs(w[j]));
        wrong += gone > kept || std::accumulate(&groups[i], &groups[i] + 4, 0) != 2;
      }
      CHECK_EQUAL(wrong, int64_t{0});

      cpu.run(ApplyMask{scores, mask});
      const auto pruned = cpu.read(scores);
      for (size_t i = 0; i < w.size(); ++i) CHECK_EQUAL(pruned[i], groups[i] != 0 ? 0.0f : w[i]);
    }
    const Tensor scores = cpu.empty(DType::f32, 3, 10), mask = cpu.empty(DType::u8, 3, 10);
    CHECK_THROWS_CODE(cpu.run(SelectMask{mask, scores, 0, 2, 4, false, false}), "INVALID_OPTION", "2:4");
    CHECK_THROWS_CODE(cpu.run(SelectMask{mask, scores, 0.5, 0, 0, true, true}), "INTERNAL", "inclusive");
  }
}

TEST("masks: Wanda's scores; what is not finite is found") {
  OnDevice cpu(make_cpu_backend(2));
  Random random(1);
  const auto w = random.uniforms(37 * 29), squares = random.uniforms(29, 0, 4);
  const Tensor weight = cpu.floats(DType::f32, 37, 29, w), sums = cpu.floats(DType::f32, 1, 29, squares);
  const Tensor out = cpu.empty(DType::f32, 37, 29);
  cpu.run(Scores{out, weight, sums});
  const auto scores = cpu.read(out);
  for (size_t i = 0; i < w.size(); ++i) CHECK_EQUAL(scores[i], std::fabs(w[i]) * std::sqrt(squares[i % 29]));

  cpu.run(CheckFinite{weight, "the weight"});
  for (float bad : {NAN, INFINITY, -INFINITY}) {
    auto broken = w;
    broken[11 * 29 + 28] = broken[30 * 29] = bad;
    const Tensor b = cpu.floats(DType::f32, 37, 29, broken);
    CHECK_THROWS_CODE(cpu.run(CheckFinite{b, "the weight"}), "NON_FINITE",
                      "the weight has a NaN or infinite entry in row 11");
  }
}
