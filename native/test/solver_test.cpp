// SparseGPT against the paper's algorithm in double precision, and the invariants that hold for any input.
#include <algorithm>
#include <numeric>

#include "cpu/dispatch.h"
#include "test/problem.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

cpu::Level widest() { return cpu::available_levels().back(); }

Pruned solve_on(const Problem& p, const Method& method, int threads = 2) {
  ThreadPool pool(threads);
  return solve(p, method, pool, widest());
}

int64_t ones(const std::vector<uint8_t>& mask) { return std::accumulate(mask.begin(), mask.end(), int64_t{0}); }

// float32 and float64 may rank two nearly equal scores differently, which then changes the rest of that row: so the masks
// agree but for `flips` entries, and the weights agree in the rows whose masks do.
void check_same(const Problem& p, const Pruned& actual, const Pruned& expected, int64_t flips) {
  int64_t different = 0;
  double worst = 0;
  for (int64_t r = 0; r < p.rows; ++r) {
    const auto begin = static_cast<size_t>(r * p.columns), end = begin + static_cast<size_t>(p.columns);
    int64_t here = 0;
    for (size_t i = begin; i < end; ++i) here += actual.mask[i] != expected.mask[i];
    different += here;
    for (size_t i = begin; i < end && here == 0; ++i) {
      const double gap = std::fabs(static_cast<double>(actual.weight[i]) - expected.weight[i]);
      worst = std::isnan(gap) ? INFINITY : std::max(worst, gap);
    }
  }
  if (different > flips) {
    CHECK_EQUAL(different, flips);
  }
  CHECK_CLOSE(worst, 0, 2e-4);
  CHECK_CLOSE(expected.loss == 0 ? actual.loss + 1 : actual.loss / expected.loss, 1, 1e-3);
  int64_t left = 0;  // pruned but not zero
  for (size_t i = 0; i < actual.mask.size(); ++i)
    left += actual.mask[i] > 1 || (actual.mask[i] == 1 && actual.weight[i] != 0);
  CHECK_EQUAL(left, int64_t{0});
}

std::vector<uint8_t> random_mask(Random& random, size_t size) {
  std::vector<uint8_t> mask(size);
  for (uint8_t& m : mask) m = random.flip() ? static_cast<uint8_t>(random.integer(1, 3)) : 0;  // any non-zero prunes
  return mask;
}

void kill_columns(Problem& p, const std::vector<int64_t>& columns) {
  for (int64_t j : columns)
    for (int64_t i = 0; i < p.columns; ++i)
      p.hessian[static_cast<size_t>(i * p.columns + j)] = p.hessian[static_cast<size_t>(j * p.columns + i)] = 0;
}

struct Pattern {
  int n, m;
};
const Pattern patterns[] = {{1, 2}, {2, 4}, {4, 8}, {1, 4}, {3, 7}, {5, 20}};

}  // namespace

TEST("SparseGPT: unstructured masks and weights are the paper's") {
  for (uint64_t seed = 1; seed <= 14; ++seed) {
    Random random(seed);
    const int64_t rows = random.integer(1, 150), columns = random.integer(1, 170);
    const auto p = random_problem(random, rows, columns, seed % 3 == 0 ? columns / 2 + 1 : 3 * columns);
    Method method;
    method.sparsity = random.uniform(0, 1);
    method.block_size = random.integer(1, 200);
    describe_case("seed ", seed, ", ", rows, " x ", columns, ", sparsity ", method.sparsity, ", blocks of ",
                  method.block_size);
    const auto actual = solve_on(p, method);
    check_same(p, actual, solve_plainly(p, method), std::max<int64_t>(2, rows * columns / 500));
    int64_t expected = 0;
    for (int64_t begin = 0; begin < columns; begin += method.block_size) {
      const int64_t size = std::min(method.block_size, columns - begin);
      expected += static_cast<int64_t>(static_cast<double>(rows * size) * method.sparsity);
    }
    CHECK_EQUAL(ones(actual.mask), expected);
  }
}

TEST("SparseGPT: n:m masks and weights are the paper's, and the pattern holds") {
  uint64_t seed = 0;
  for (const auto [n, m] : patterns) {
    for (int repeat = 0; repeat < 3; ++repeat) {
      Random random(++seed);
      const int64_t rows = random.integer(1, 150), columns = m * random.integer(1, 160 / m);
      const auto p = random_problem(random, rows, columns, 3 * columns);
      Method method;
      method.n = n;
      method.m = m;
      method.block_size = m * random.integer(1, 40);
      describe_case("seed ", seed, ", ", rows, " x ", columns, ", ", n, ":", m, ", blocks of ", method.block_size);
      const auto actual = solve_on(p, method);
      check_same(p, actual, solve_plainly(p, method), std::max<int64_t>(2, rows * columns / 500));
      bool holds = true;
      for (auto group = actual.mask.begin(); group != actual.mask.end(); group += m)
        holds = holds && std::accumulate(group, group + m, 0) == n;
      CHECK(holds);
    }
  }
}

TEST("SparseGPT: n:m does not depend on the block size, even when that cuts groups") {
  Random random(31);
  const auto p = random_problem(random, 70, 168, 400);
  for (const auto [n, m] : {Pattern{2, 4}, Pattern{3, 7}, Pattern{4, 8}}) {
    Method method;
    method.n = n;
    method.m = m;
    method.block_size = 168;
    const auto whole = solve_on(p, method);
    for (int64_t block_size : {1, 10, 50, 127, 1000}) {
      describe_case(n, ":", m, ", blocks of ", block_size);
      method.block_size = block_size;
      check_same(p, solve_on(p, method), whole, 20);
    }
  }
}

TEST("SparseGPT: a given mask is used as it is, whatever the block size") {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    Random random(seed);
    const int64_t rows = random.integer(1, 150), columns = random.integer(2, 170);
    const auto p = random_problem(random, rows, columns, 2 * columns);
    Method method;
    method.mask = random_mask(random, p.weight.size());
    const auto expected = solve_plainly(p, method);
    for (int64_t block_size : {1, 7, 32, 128, 1000}) {
      describe_case("seed ", seed, ", ", rows, " x ", columns, ", blocks of ", block_size);
      method.block_size = block_size;
      check_same(p, solve_on(p, method), expected, 0);
    }
  }
}

TEST("SparseGPT: the loss is half the trace of ΔW H ΔWᵀ") {
  for (uint64_t seed = 1; seed <= 9; ++seed) {
    Random random(100 + seed);
    const int64_t rows = random.integer(1, 200), columns = 4 * random.integer(1, 60);
    const auto p = random_problem(random, rows, columns, 2 * columns);
    Method method;
    method.sparsity = random.uniform(0.3, 0.9);
    method.block_size = random.integer(1, 130);
    if (seed % 3 == 1) method.n = 2, method.m = 4;
    if (seed % 3 == 2) method.bits = 4;
    describe_case("seed ", seed, ", ", rows, " x ", columns);
    const auto actual = solve_on(p, method);
    const auto h = damped_hessian(p, method.dampening);
    double trace = 0;
    std::vector<double> gap(static_cast<size_t>(columns));
    for (int64_t r = 0; r < rows; ++r) {
      for (size_t j = 0; j < gap.size(); ++j) {
        const size_t i = static_cast<size_t>(r) * gap.size() + j;
        gap[j] = static_cast<double>(p.weight[i]) - actual.weight[i];
      }
      for (size_t i = 0; i < gap.size(); ++i)
        for (size_t j = 0; j < gap.size(); ++j) trace += gap[i] * h[i * gap.size() + j] * gap[j];
    }
    CHECK_CLOSE(actual.loss / (0.5 * trace), 1, 1e-3);
  }
}

TEST("SparseGPT: kept weights lie on the row's grid") {
  for (int bits : {2, 3, 4, 8}) {
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      Random random(seed);
      const int64_t rows = random.integer(1, 90), columns = 4 * random.integer(1, 40);
      auto p = random_problem(random, rows, columns, 2 * columns);
      if (seed == 2)  // one-sided and empty rows have a grid too
        for (int64_t j = 0; j < columns; ++j) {
          p.weight[static_cast<size_t>(j)] = std::fabs(p.weight[static_cast<size_t>(j)]) + 1;
          if (rows > 1) p.weight[static_cast<size_t>(columns + j)] = 0;
        }
      Method method;
      method.bits = bits;
      if (seed == 3) method.n = 2, method.m = 4;
      describe_case(bits, " bits, seed ", seed, ", ", rows, " x ", columns);
      const auto actual = solve_on(p, method);
      const auto expected = solve_plainly(p, method);
      CHECK_CLOSE(actual.loss / std::max(expected.loss, 1e-30), 1, 0.03);
      int64_t off_grid = 0, equal = 0;
      for (int64_t r = 0; r < rows; ++r) {
        const float* row = p.weight.data() + r * columns;
        const float low = std::min(*std::min_element(row, row + columns), 0.0f);
        const float high = std::max(*std::max_element(row, row + columns), 0.0f);
        const double step = low == high ? 1 : static_cast<double>(high - low) / ((1 << bits) - 1);
        const double zero = std::nearbyint(-low / step);
        for (int64_t j = 0; j < columns; ++j) {
          const auto i = static_cast<size_t>(r * columns + j);
          const double level = actual.weight[i] / step + zero;
          off_grid += std::fabs(level - std::nearbyint(level)) > 1e-3 || level < -1e-3 || level > (1 << bits) - 1 + 1e-3;
          equal += close(actual.weight[i], expected.weight[i], 1e-4);
        }
      }
      CHECK_EQUAL(off_grid, int64_t{0});
      // A weight half way between two levels may go either way, and takes the rest of its row along.
      CHECK(static_cast<double>(equal) >= 0.9 * static_cast<double>(rows * columns));
    }
  }
}

TEST("SparseGPT: each group of columns has a grid of its own") {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    Random random(300 + seed);
    const int64_t rows = random.integer(1, 90), size = 8 << random.integer(0, 3), columns = size * random.integer(2, 9);
    const auto p = random_problem(random, rows, columns, 2 * columns);
    Method method;
    method.bits = static_cast<int>(random.integer(2, 5));
    method.groups = columns / size;
    method.symmetric = seed % 2 == 0;
    method.clip = seed % 4 > 1;
    method.block_size = seed % 3 == 0 ? 2 * size : size / 2;
    if (seed % 3 == 1) method.n = 2, method.m = 4;
    describe_case("seed ", seed, ", ", rows, " x ", columns, ", groups of ", size, ", bits ", method.bits);
    const auto actual = solve_on(p, method);
    const double top = (1 << method.bits) - 1;
    int64_t off_grid = 0, wrong_grid = 0;
    for (int64_t g = 0; g < rows * method.groups; ++g) {
      const double step = actual.steps[static_cast<size_t>(g)], zero = actual.zeros[static_cast<size_t>(g)];
      double low = 0, high = 0;
      for (int64_t i = g * size; i < (g + 1) * size; ++i) {
        const double level = actual.weight[static_cast<size_t>(i)] / step + zero;
        off_grid += std::fabs(level - std::nearbyint(level)) > 1e-3 || level < -1e-3 || level > top + 1e-3;
        low = std::min<double>(low, p.weight[static_cast<size_t>(i)]);
        high = std::max<double>(high, p.weight[static_cast<size_t>(i)]);
      }
      const double widest = method.symmetric ? 2 * std::max(-low, high) / top : (high - low) / top;
      const double share = step / widest;
      wrong_grid += method.clip ? share < 0.5 - 1e-5 || share > 1 + 1e-5 : std::fabs(share - 1) > 1e-5;
      wrong_grid += method.symmetric && zero != std::ldexp(1.0, method.bits - 1);
    }
    CHECK_EQUAL(off_grid, int64_t{0});
    CHECK_EQUAL(wrong_grid, int64_t{0});
    if (method.symmetric || method.clip) continue;
    const auto expected = solve_plainly(p, method);
    CHECK_CLOSE(actual.loss / expected.loss, 1, 0.03);
  }
}

TEST("SparseGPT: a searched range lowers the squared error of rounding") {
  // With an identity for the Hessian nothing is made up for: the loss is that of rounding.
  Random random(17);
  const int64_t rows = 40, columns = 64;
  auto p = random_problem(random, rows, columns, 2 * columns);
  std::fill(p.hessian.begin(), p.hessian.end(), 0.0f);
  for (int64_t j = 0; j < columns; ++j) p.hessian[static_cast<size_t>(j * columns + j)] = 1;
  for (bool symmetric : {false, true}) {
    Method method;
    method.sparsity = 0;
    method.bits = 3;
    method.groups = 2;
    method.symmetric = symmetric;
    method.block_size = 32;
    const auto whole = solve_on(p, method);
    method.clip = true;
    const auto searched = solve_on(p, method);
    CHECK(searched.loss < 0.97 * whole.loss);
  }
}

TEST("SparseGPT: dead columns become zero") {
  Random random(8);
  auto p = random_problem(random, 60, 140, 300);
  const std::vector<int64_t> dead = {0, 5, 64, 139};
  kill_columns(p, dead);
  for (int kind = 0; kind < 4; ++kind) {
    Method method;
    method.block_size = 52;
    if (kind == 1) method.n = 2, method.m = 4;
    if (kind == 2) method.mask.assign(p.weight.size(), 0);
    if (kind == 3) method.bits = 4;
    describe_case("kind ", kind);
    const auto actual = solve_on(p, method);
    CHECK_EQUAL(actual.report.dead_columns, static_cast<int64_t>(dead.size()));
    for (int64_t j : dead)
      for (int64_t r = 0; r < 60; ++r) CHECK_EQUAL(actual.weight[static_cast<size_t>(r * 140 + j)], 0.0f);
    if (kind < 2) check_same(p, actual, solve_plainly(p, method), 20);
    if (kind == 2) CHECK_EQUAL(actual.loss, 0.0);
  }
}

TEST("SparseGPT: zeros stay zero and count towards the goal") {
  uint64_t seed = 70;
  for (const auto [n, m] : {Pattern{0, 0}, Pattern{2, 4}, Pattern{4, 8}, Pattern{3, 7}}) {
    for (const auto& [share, sparsity] : {std::pair(0.7, 0.5), std::pair(0.4, 0.6), std::pair(0.5, 0.0)}) {
      for (const bool given : {false, true}) {
        if (given && m > 0) continue;
        Random random(++seed);
        const int64_t rows = 61, columns = 168;
        auto p = random_problem(random, rows, columns, 3 * columns);
        thin_out(random, p, share);
        Method method;
        method.n = n;
        method.m = m;
        method.sparsity = sparsity;
        method.block_size = m > 0 ? 10 * m : 50;
        if (given) method.mask = random_mask(random, p.weight.size());
        describe_case(n, ":", m, ", ", share, " zero, sparsity ", sparsity, given ? ", mask" : "");
        const auto actual = solve_on(p, method);
        check_same(p, actual, solve_plainly(p, method), rows * columns / 500);
        method.bits = 4;
        const auto rounded = solve_on(p, method);
        int64_t filled = 0;
        for (size_t i = 0; i < p.weight.size(); ++i)
          if (p.weight[i] == 0)
            filled += actual.weight[i] != 0 || actual.mask[i] == 0 || rounded.weight[i] != 0 || rounded.mask[i] == 0;
        CHECK_EQUAL(filled, int64_t{0});
        // What is zero is not pruned again: only a share of zeros below the goal takes more.
        const auto zeros = std::count(p.weight.begin(), p.weight.end(), 0.0f);
        if (m == 0 && !given && share > sparsity + 0.1) CHECK_EQUAL(ones(actual.mask), static_cast<int64_t>(zeros));
      }
    }
  }
}

// Powers of two are exact in every step.
TEST("SparseGPT: weights of any size are pruned alike, and have their loss") {
  Random random(81);
  const auto p = random_problem(random, 40, 140, 300);
  for (const auto [n, m] : {Pattern{0, 0}, Pattern{2, 4}}) {
    Method method;
    method.n = n;
    method.m = m;
    const auto expected = solve_on(p, method);
    for (int exponent : {80, 66, 40, -40, -70}) {
      describe_case(n, ":", m, ", 2^", exponent);
      auto scaled = p;
      for (float& w : scaled.weight) w = std::ldexp(w, exponent);
      const auto actual = solve_on(scaled, method);
      CHECK(actual.mask == expected.mask);
      CHECK_CLOSE(std::ldexp(actual.loss, -2 * exponent) / expected.loss, 1, 1e-6);
    }
  }
}

TEST("SparseGPT: grids of the smallest and the largest weights") {
  Random random(82);
  auto p = random_problem(random, 20, 60, 200);
  Method method;
  method.bits = 4;
  for (const float size : {1e-45f, 1e-43f, 1e-38f, 3e38f}) {
    describe_case("size ", size);
    auto scaled = p;
    for (float& w : scaled.weight) w = random.flip() ? size : -size;
    for (size_t i = 0; i < scaled.hessian.size(); ++i) scaled.hessian[i] = i % 61 == 0 ? 1.0f : 0.0f;
    const auto actual = solve_on(scaled, method);
    bool finite = std::isfinite(actual.loss);
    for (float w : actual.weight) finite = finite && std::isfinite(w);
    CHECK(finite);
  }
}

TEST("SparseGPT: NaN and infinity are refused") {
  Random random(9);
  const auto p = random_problem(random, 40, 50, 100);
  for (float bad : {NAN, INFINITY, -INFINITY}) {
    auto broken = p;
    broken.weight[17 * 50 + 49] = bad;
    CHECK_THROWS_CODE(solve_on(broken, {}), "NON_FINITE", "row 17");
    broken = p;
    broken.hessian[3 * 50 + 49] = bad;
    CHECK_THROWS_CODE(solve_on(broken, {}), "NON_FINITE", "Hessian");
  }
}

TEST("SparseGPT: an indefinite Hessian is damped until it works") {
  Random random(10);
  auto p = random_problem(random, 60, 200, 70);  // singular
  double mean = 0;
  for (int64_t j = 0; j < 200; ++j) mean += p.hessian[static_cast<size_t>(j * 200 + j)] / 200;
  for (int64_t j = 0; j < 200; ++j) p.hessian[static_cast<size_t>(j * 200 + j)] -= static_cast<float>(0.05 * mean);
  Method method;
  const auto actual = solve_on(p, method);
  CHECK_EQUAL(actual.report.retries, 1);
  CHECK_CLOSE(actual.report.dampening, 0.1, 1e-12);
  method.dampening = actual.report.dampening;
  check_same(p, actual, solve_plainly(p, method), 24);
}

// Powers of four are exact in every step, so nothing but the loss may change.
TEST("SparseGPT: the scale of the Hessian changes nothing but the loss") {
  Random random(11);
  const auto p = random_problem(random, 50, 90, 200);
  for (const auto [n, m] : {Pattern{0, 0}, Pattern{1, 2}}) {
    Method method;
    method.n = n;
    method.m = m;
    const auto expected = solve_on(p, method);
    for (int power : {-80, -20, 20, 80}) {
      describe_case("2^", power);
      auto scaled = p;
      for (float& h : scaled.hessian) h = std::ldexp(h, power);
      const auto actual = solve_on(scaled, method);
      CHECK(actual.mask == expected.mask);
      CHECK(actual.weight == expected.weight);
      CHECK_CLOSE(std::ldexp(actual.loss, -power) / expected.loss, 1, 1e-6);
    }
  }
}

TEST("SparseGPT: bit for bit the same on 1, 2 and 3 threads") {
  Random random(12);
  const auto p = random_problem(random, 200, 300, 400);
  for (int kind = 0; kind < 3; ++kind) {
    Method method;
    if (kind == 1) method.n = 2, method.m = 4;
    if (kind == 2) method.bits = 4;
    describe_case("kind ", kind);
    const auto one = solve_on(p, method, 1);
    for (int threads : {2, 3}) {
      const auto other = solve_on(p, method, threads);
      CHECK(other.weight == one.weight && other.mask == one.mask && other.loss == one.loss);
    }
  }
}

TEST("SparseGPT: every level gives the same to rounding") {
  Random random(13);
  const auto p = random_problem(random, 130, 180, 400);
  ThreadPool pool(2);
  for (int kind = 0; kind < 3; ++kind) {
    Method method;
    method.block_size = 60;
    if (kind == 1) method.n = 2, method.m = 4;
    if (kind == 2) method.mask = random_mask(random, p.weight.size());
    const auto expected = solve_plainly(p, method);
    for (cpu::Level level : cpu::available_levels()) {
      describe_case(cpu::level_name(level), ", kind ", kind);
      check_same(p, solve(p, method, pool, level), expected, kind == 2 ? 0 : 46);
    }
  }
}

// Without correlations nothing is compensated, so equal weights stay equal.
TEST("SparseGPT: of equal scores the first in row order go") {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    Random random(seed);
    const int64_t rows = random.integer(1, 200), columns = random.integer(1, 150);
    Problem p{rows, columns, std::vector<float>(static_cast<size_t>(rows * columns)),
              std::vector<float>(static_cast<size_t>(columns * columns))};
    for (float& w : p.weight) w = 0.5f * static_cast<float>(random.integer(-2, 2));
    for (int64_t j = 0; j < columns; ++j) p.hessian[static_cast<size_t>(j * columns + j)] = 1;
    Method method;
    method.sparsity = random.uniform(0.1, 0.9);
    method.block_size = random.integer(1, columns);
    describe_case("seed ", seed, ", ", rows, " x ", columns, ", sparsity ", method.sparsity);
    check_same(p, solve_on(p, method), solve_plainly(p, method), 0);
  }
}

TEST("SparseGPT: patterns and given masks in chunks of rows are the same as for those rows alone") {
  Random random(15);
  // More than the 32 MiB of one chunk.
  const int64_t rows = 4200, columns = 2048, alone = 37;
  Problem p{rows, columns, random.uniforms(rows * columns), std::vector<float>(static_cast<size_t>(columns * columns))};
  for (int64_t i = 0; i < columns; ++i)
    for (int64_t j = 0; j < columns; ++j)
      p.hessian[static_cast<size_t>(i * columns + j)] = static_cast<float>(std::pow(0.7, std::abs(i - j)));
  for (int kind = 0; kind < 2; ++kind) {
    Method method;
    if (kind == 0) method.n = 2, method.m = 4;
    if (kind == 1) method.mask = random_mask(random, p.weight.size());
    describe_case("kind ", kind);
    const auto whole = solve_on(p, method);
    double loss = 0;
    for (int64_t first : {int64_t{0}, rows / 2 - alone / 2, rows - alone}) {
      const auto begin = static_cast<size_t>(first * columns), size = static_cast<size_t>(alone * columns);
      const auto part = [&](const auto& all) {
        return std::decay_t<decltype(all)>(all.begin() + static_cast<int64_t>(begin),
                                           all.begin() + static_cast<int64_t>(begin + size));
      };
      auto few = method;
      if (kind == 1) few.mask = part(method.mask);
      const auto expected = solve_on({alone, columns, part(p.weight), p.hessian}, few);
      Problem rows_of_whole{alone, columns, {}, {}};
      check_same(rows_of_whole, {part(whole.weight), part(whole.mask), expected.loss, whole.report}, expected, 2);
      loss += expected.loss;
    }
    CHECK_CLOSE(whole.loss / static_cast<double>(rows) / (loss / (3 * static_cast<double>(alone))), 1, 0.05);
  }
}

TEST("SparseGPT: better than removing the same weights without compensation") {
  Random random(14);
  const auto p = random_problem(random, 64, 128, 400);
  const auto actual = solve_on(p, {});
  Method keep;
  keep.mask.assign(p.weight.size(), 0);
  CHECK(solve_on(p, keep).weight == p.weight);
  const auto h = damped_hessian(p, 0.01);
  double plain = 0;
  for (size_t r = 0; r < 64; ++r)
    for (size_t i = 0; i < 128; ++i)
      for (size_t j = 0; j < 128; ++j)
        if (actual.mask[r * 128 + i] != 0 && actual.mask[r * 128 + j] != 0)
          plain += 0.5 * p.weight[r * 128 + i] * h[i * 128 + j] * p.weight[r * 128 + j];
  CHECK(actual.loss < 0.8 * plain);
}
