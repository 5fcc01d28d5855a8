#include "cpu/selection.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace sparsegpt::cpu {

namespace {

// The bits of a non-negative float order as the float does.
inline uint32_t key(float score) {
  uint32_t bits;
  std::memcpy(&bits, &score, 4);
  return bits & 0x7fffffffu;
}

constexpr int bucket_shift = 17;  // exponent and 6 bits of the fraction
constexpr size_t buckets = size_t{1} << (31 - bucket_shift);

}  // namespace

void RankSearch::count(int thread, const float* scores, int64_t total) {
  auto& counts = counts_[static_cast<size_t>(thread)];
  counts.resize(buckets);
  for (int64_t i = 0; i < total; ++i) ++counts[key(scores[i]) >> bucket_shift];
}

RankSearch::Bucket RankSearch::bucket_of(int64_t rank) const {
  int64_t before = 0;
  for (size_t bucket = 0;; ++bucket) {
    int64_t here = 0;
    for (const auto& counts : counts_)
      if (!counts.empty()) here += counts[bucket];
    if (before + here > rank) return {static_cast<uint32_t>(bucket), before};
    before += here;
  }
}

void RankSearch::collect(int thread, const Bucket& bucket, const float* scores, int64_t total) {
  auto& [keys, used] = candidates_[static_cast<size_t>(thread)];
  const size_t room = used + static_cast<size_t>(total);
  if (keys.size() < room) keys.resize(room + room / 2);
  const uint32_t first = bucket.index << bucket_shift;
  used += static_cast<size_t>(
      kernels_.collect(keys.data() + used, scores, total, first, first + (uint32_t{1} << bucket_shift) - 1));
}

RankSearch::Found RankSearch::rank_among_candidates(const Bucket& bucket, int64_t rank) {
  auto& [all, used] = candidates_.front();
  for (size_t t = 1; t < candidates_.size(); ++t) {
    auto& [keys, count] = candidates_[t];
    if (all.size() < used + count) all.resize(used + count);
    std::copy_n(keys.begin(), count, all.begin() + static_cast<int64_t>(used));
    used += count;
    count = 0;
  }
  const auto end = all.begin() + static_cast<int64_t>(used), nth = all.begin() + (rank - bucket.before);
  std::nth_element(all.begin(), nth, end);
  const uint32_t threshold = *nth;
  Found found{0, bucket.before, 0};
  std::memcpy(&found.score, &threshold, 4);
  for (auto k = all.begin(); k != end; ++k) {
    found.smaller += *k < threshold;
    found.equal += *k == threshold;
  }
  used = 0;
  for (auto& counts : counts_) std::fill(counts.begin(), counts.end(), 0);
  return found;
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
