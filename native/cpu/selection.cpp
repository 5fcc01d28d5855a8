#include "cpu/selection.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace sparsegpt::cpu {

// Writes the bits of the scores, but for the sign, that lie in [low, high], in order; returns how many. out needs room for all.
SPARSEGPT_KERNEL(collect_keys, int64_t, uint32_t* out, const float* scores, int64_t count, uint32_t low, uint32_t high);

namespace {

// The bits of a non-negative float order as the float does.
inline uint32_t key(float score) {
  uint32_t bits;
  std::memcpy(&bits, &score, 4);
  return bits & 0x7fffffffu;
}

float score_of(uint32_t key) {
  float score;
  std::memcpy(&score, &key, 4);
  return score;
}

constexpr int bucket_shift = 17;  // exponent and 6 bits of the fraction
constexpr int64_t buckets = int64_t{1} << (31 - bucket_shift);
constexpr uint32_t low_mask = (uint32_t{1} << bucket_shift) - 1;
// By one thread, before they are counted; from so many scores at a time.
constexpr int64_t most_gathered = 65536, piece = 16384;

}  // namespace

RankSearch::RankSearch(ThreadPool& pool, Level level)
    : pool_(pool),
      level_(level),
      counts_(pool.scratch<uint32_t>(pool.threads() * buckets)),
      gathered_(pool.scratch<uint32_t>(pool.threads() * most_gathered)),
      shares_(static_cast<size_t>(pool.threads())) {
  std::fill_n(counts_.data(), counts_.size(), 0);
}

size_t RankSearch::scratch(int threads) {
  return Scratch<uint32_t>::bytes(threads * buckets) + Scratch<uint32_t>::bytes(threads * most_gathered) +
         static_cast<size_t>(threads) * (low_mask + 1) * sizeof(uint32_t);
}

void RankSearch::count(int thread, const float* scores, int64_t total) {
  uint32_t* counts = counts_.data() + thread * buckets;
  shares_[static_cast<size_t>(thread)].counted = true;
  for (int64_t i = 0; i < total; ++i) ++counts[key(scores[i]) >> bucket_shift];
}

RankSearch::Bucket RankSearch::bucket_of(int64_t rank) const {
  int64_t before = 0;
  for (int64_t bucket = 0;; ++bucket) {
    int64_t here = 0;
    for (size_t t = 0; t < shares_.size(); ++t)
      if (shares_[t].counted) here += counts_[static_cast<int64_t>(t) * buckets + bucket];
    if (before + here > rank) return {static_cast<uint32_t>(bucket) << bucket_shift, before};
    before += here;
  }
}

void RankSearch::gather(int thread, const Bucket& bucket, const float* scores, int64_t total) {
  Share& share = shares_[static_cast<size_t>(thread)];
  for (int64_t i = 0; i < total; i += piece) {
    const int64_t some = std::min(piece, total - i);
    if (share.gathered + some > most_gathered) count_gathered(thread);
    share.gathered += collect_keys[level_](gathered_.data() + thread * most_gathered + share.gathered, scores + i, some,
                                           bucket.first, bucket.first + low_mask);
  }
}

void RankSearch::count_gathered(int thread) {
  Share& share = shares_[static_cast<size_t>(thread)];
  share.low_counts.resize(low_mask + 1);
  const uint32_t* keys = gathered_.data() + thread * most_gathered;
  for (int64_t i = 0; i < share.gathered; ++i) ++share.low_counts[keys[i] & low_mask];
  share.gathered = 0;
}

RankSearch::Found RankSearch::rank_in(const Bucket& bucket, int64_t rank) {
  const bool many = std::any_of(shares_.begin(), shares_.end(), [](const Share& s) { return !s.low_counts.empty(); });
  if (many) {
    int64_t before = bucket.before;
    for (size_t t = 0; t < shares_.size(); ++t)
      if (shares_[t].gathered > 0) count_gathered(static_cast<int>(t));
    for (uint32_t low = 0;; ++low) {
      int64_t here = 0;
      for (const Share& share : shares_)
        if (!share.low_counts.empty()) here += share.low_counts[low];
      if (before + here > rank) return {score_of(bucket.first | low), before, here};
      before += here;
    }
  }
  // One after another.
  uint32_t* keys = gathered_.data();
  int64_t used = 0;
  for (size_t t = 0; t < shares_.size(); ++t) {
    std::memmove(keys + used, keys + static_cast<int64_t>(t) * most_gathered,
                 static_cast<size_t>(shares_[t].gathered) * sizeof(uint32_t));
    used += shares_[t].gathered;
  }
  uint32_t* nth = keys + (rank - bucket.before);
  std::nth_element(keys, nth, keys + used);
  const uint32_t threshold = *nth;
  Found found{score_of(threshold), bucket.before, 0};
  for (int64_t i = 0; i < used; ++i) {
    found.smaller += keys[i] < threshold;
    found.equal += keys[i] == threshold;
  }
  return found;
}

void RankSearch::forget() {
  for (size_t t = 0; t < shares_.size(); ++t) {
    if (shares_[t].counted) std::fill_n(counts_.data() + static_cast<int64_t>(t) * buckets, buckets, 0);
    shares_[t] = {};
  }
}

void select_smallest(const float* scores, int64_t total, int64_t count, uint8_t* mask, uint32_t* keys) {
  if (count <= 0 || count >= total) {
    std::memset(mask, count > 0, static_cast<size_t>(total));
    return;
  }
  for (int64_t i = 0; i < total; ++i) keys[i] = key(scores[i]);
  std::nth_element(keys, keys + (count - 1), keys + total);
  const uint32_t threshold = keys[count - 1];
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
    for (int a = 0; a < m; ++a) group[static_cast<size_t>(a)] = {std::fabs(scores[g + a]), a};
    std::nth_element(group.begin(), group.begin() + (n - 1), group.end(),
                     [](const auto& x, const auto& y) { return x.first < y.first; });
    for (int a = 0; a < m; ++a) mask[g + group[static_cast<size_t>(a)].second] = a < n;
  }
}

}  // namespace sparsegpt::cpu
