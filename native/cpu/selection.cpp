#include "cpu/selection.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

namespace sparsegpt::cpu {

namespace {

// The bits of a non-negative float order as the float does.
inline uint32_t key(float score) {
  uint32_t bits;
  std::memcpy(&bits, &score, 4);
  return bits & 0x7fffffffu;
}

constexpr int bucket_shift = 19;  // exponent and 4 bits of the fraction
constexpr size_t buckets = size_t{1} << (31 - bucket_shift);

}  // namespace

void select_smallest(ThreadPool& pool, const float* scores, int64_t total, int64_t count, uint8_t* mask) {
  if (count <= 0 || count >= total) {
    std::memset(mask, count > 0, static_cast<size_t>(total));
    return;
  }
  // First the bucket in which the threshold lies, then the threshold among the scores of that bucket.
  constexpr int64_t part = 1 << 16;
  const int64_t parts = (total + part - 1) / part;
  std::vector<std::vector<int64_t>> histograms(static_cast<size_t>(pool.threads()));
  pool.parallel_for(parts, [&](int64_t p, int thread) {
    auto& histogram = histograms[static_cast<size_t>(thread)];
    histogram.resize(buckets);
    for (int64_t i = p * part; i < std::min(total, (p + 1) * part); ++i) ++histogram[key(scores[i]) >> bucket_shift];
  });
  int64_t before = 0;
  size_t bucket = 0;
  for (;; ++bucket) {
    int64_t here = 0;
    for (const auto& histogram : histograms)
      if (!histogram.empty()) here += histogram[bucket];
    if (before + here >= count) break;
    before += here;
  }
  std::vector<std::vector<uint32_t>> found(static_cast<size_t>(parts));
  pool.parallel_for(parts, [&](int64_t p, int) {
    for (int64_t i = p * part; i < std::min(total, (p + 1) * part); ++i) {
      const uint32_t k = key(scores[i]);
      if (k >> bucket_shift == bucket) found[static_cast<size_t>(p)].push_back(k);
    }
  });
  std::vector<uint32_t> candidates;
  for (const auto& keys : found) candidates.insert(candidates.end(), keys.begin(), keys.end());
  const auto nth = candidates.begin() + (count - before - 1);
  std::nth_element(candidates.begin(), nth, candidates.end());
  const uint32_t threshold = *nth;
  int64_t ties = count - before;
  for (uint32_t k : candidates) ties -= k < threshold;

  std::vector<int64_t> equal(static_cast<size_t>(parts));
  pool.parallel_for(parts, [&](int64_t p, int) {
    int64_t seen = 0;
    for (int64_t i = p * part; i < std::min(total, (p + 1) * part); ++i) {
      const uint32_t k = key(scores[i]);
      mask[i] = k < threshold;
      seen += k == threshold;
    }
    equal[static_cast<size_t>(p)] = seen;
  });
  for (int64_t p = 0; ties > 0; ++p) {
    if (equal[static_cast<size_t>(p)] == 0) continue;
    for (int64_t i = p * part; i < std::min(total, (p + 1) * part) && ties > 0; ++i) {
      if (key(scores[i]) == threshold) {
        mask[i] = 1;
        --ties;
      }
    }
  }
}

void select_smallest(const float* scores, int64_t total, int64_t count, uint8_t* mask) {
  if (count <= 0 || count >= total) {
    std::memset(mask, count > 0, static_cast<size_t>(total));
    return;
  }
  std::vector<uint32_t> keys(static_cast<size_t>(total));
  for (int64_t i = 0; i < total; ++i) keys[static_cast<size_t>(i)] = key(scores[i]);
  const auto nth = keys.begin() + (count - 1);
  std::nth_element(keys.begin(), nth, keys.end());
  const uint32_t threshold = *nth;
  int64_t ties = count;
  for (int64_t i = 0; i < total; ++i) {
    mask[i] = key(scores[i]) < threshold;
    ties -= mask[i];
  }
  for (int64_t i = 0; ties > 0; ++i) {
    if (key(scores[i]) != threshold) continue;
    mask[i] = 1;
    --ties;
  }
}

void select_groups(const float* scores, int64_t total, int n, int m, uint8_t* mask) {
  std::vector<std::pair<float, int>> group(static_cast<size_t>(m));
  for (int64_t g = 0; g < total; g += m) {
    for (int a = 0; a < m; ++a) group[static_cast<size_t>(a)] = {scores[g + a], a};
    std::nth_element(group.begin(), group.begin() + (n - 1), group.end(),
                     [](const auto& x, const auto& y) { return x.first < y.first; });
    for (int a = 0; a < m; ++a) mask[g + group[static_cast<size_t>(a)].second] = a < n;
  }
}

}  // namespace sparsegpt::cpu
