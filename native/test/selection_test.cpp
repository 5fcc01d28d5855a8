// Choosing the smallest scores, against a stable sort.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/dispatch.h"
#include "cpu/selection.h"
#include "test/check.h"

using namespace sparsegpt;
using namespace sparsegpt::test;

namespace {

std::vector<uint8_t> sorted_choice(const std::vector<float>& scores, int64_t count) {
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] < scores[b]; });
  std::vector<uint8_t> mask(scores.size());
  for (int64_t i = 0; i < count; ++i) mask[order[static_cast<size_t>(i)]] = 1;
  return mask;
}

// Few distinct values, so that the threshold is shared by many; or many values over all magnitudes.
std::vector<float> random_scores(Random& random, int64_t total) {
  std::vector<float> scores(static_cast<size_t>(total));
  const int64_t distinct = random.integer(0, 3) == 0 ? 0 : random.integer(1, 6);
  for (float& score : scores) {
    if (distinct > 0) {
      score = static_cast<float>(random.integer(0, distinct - 1)) * 0.1f;
    } else {
      score = static_cast<float>(std::exp(random.uniform(-95, 85)));
    }
  }
  return scores;
}

void check_choice(const std::vector<float>& scores, int64_t count) {
  std::vector<uint8_t> mask(scores.size(), 9);
  std::vector<uint32_t> keys(scores.size());
  cpu::select_smallest(scores.data(), static_cast<int64_t>(scores.size()), count, mask.data(), keys.data());
  CHECK(mask == sorted_choice(scores, count));
}

void check_rank(cpu::RankSearch& search, ThreadPool& pool, const std::vector<float>& scores, int64_t part_size,
                int64_t rank) {
  const auto total = static_cast<int64_t>(scores.size()), parts = (total + part_size - 1) / part_size;
  const auto part = [&](int64_t p) {
    return std::pair<const float*, int64_t>(scores.data() + p * part_size, std::min(part_size, total - p * part_size));
  };
  pool.parallel_for(parts, [&](int64_t p, int thread) { search.count(thread, part(p).first, part(p).second); });
  const auto found = search.find(parts, rank, part);
  auto sorted = scores;
  std::sort(sorted.begin(), sorted.end());
  const float expected = sorted[static_cast<size_t>(rank)];
  CHECK_EQUAL(found.score, expected);
  CHECK_EQUAL(found.smaller, std::lower_bound(sorted.begin(), sorted.end(), expected) - sorted.begin());
  CHECK_EQUAL(found.equal, std::count(sorted.begin(), sorted.end(), expected));
}

}  // namespace

TEST("selection: exactly the smallest, of equal scores the first") {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    Random random(seed);
    const int64_t total = random.integer(1, 400);
    const auto scores = random_scores(random, total);
    for (int64_t count : {int64_t{0}, int64_t{1}, random.integer(0, total), total - 1, total}) {
      describe_case("seed ", seed, ", ", count, " of ", total);
      check_choice(scores, count);
    }
  }
}

TEST("selection: the score of a rank, in parts, again and again") {
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    cpu::RankSearch search(pool, cpu::available_levels().back());
    for (uint64_t seed = 1; seed <= 60; ++seed) {
      Random random(seed);
      const int64_t total = seed % 20 == 0 ? random.integer(200000, 300000) : random.integer(1, 3000);
      const auto scores = random_scores(random, total);
      const int64_t part_size = random.integer(1, total);
      for (int64_t rank : {int64_t{0}, random.integer(0, total - 1), total - 1}) {
        describe_case(threads, " threads, seed ", seed, ", rank ", rank, " of ", total, " in parts of ", part_size);
        check_rank(search, pool, scores, part_size, rank);
      }
    }
  }
}

TEST("selection: the n smallest of each group of m") {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    Random random(seed);
    const auto m = static_cast<int>(random.integer(1, 9)), n = static_cast<int>(random.integer(1, m));
    const int64_t groups = random.integer(1, 20);
    describe_case("seed ", seed, ", ", n, ":", m);
    const auto scores = random_scores(random, groups * m);
    std::vector<uint8_t> mask(scores.size(), 9);
    cpu::select_groups(scores.data(), groups * m, n, m, mask.data());
    for (int64_t g = 0; g < groups; ++g) {
      float largest_chosen = -1, smallest_left = INFINITY;
      int chosen = 0;
      for (int64_t i = g * m; i < (g + 1) * m; ++i) {
        const float score = scores[static_cast<size_t>(i)];
        const uint8_t bit = mask[static_cast<size_t>(i)];
        CHECK(bit <= 1);
        chosen += bit;
        if (bit != 0) largest_chosen = std::max(largest_chosen, score);
        if (bit == 0) smallest_left = std::min(smallest_left, score);
      }
      CHECK_EQUAL(chosen, n);
      CHECK(largest_chosen <= smallest_left);
    }
  }
}

#if defined(__GLIBCXX__)
TEST("selection: of equal scores in a group those that PyTorch's topk takes") {
  const struct {
    std::vector<float> scores;
    std::vector<uint8_t> mask;
  } cases[] = {
      {{1, 1, 1, 1}, {0, 0, 1, 1}}, {{1, 1, 1, 2}, {0, 1, 1, 0}}, {{1, 1, 2, 1}, {0, 1, 0, 1}}, {{0, 1, 1, 1}, {1, 0, 1, 0}},
      {{1, 0, 1, 1}, {0, 1, 0, 1}}, {{0, 1, 1, 2}, {1, 1, 0, 0}}, {{1, 1, 0, 2}, {0, 1, 1, 0}}, {{2, 1, 1, 0}, {0, 0, 1, 1}},
  };
  for (const auto& c : cases) {
    std::vector<uint8_t> mask(4);
    cpu::select_groups(c.scores.data(), 4, 2, 4, mask.data());
    CHECK(mask == c.mask);
  }
}
#endif
