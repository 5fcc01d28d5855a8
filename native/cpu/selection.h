// Choosing the smallest scores, which are non-negative: their sign bit is not looked at.
#pragma once

#include <cstdint>
#include <vector>

#include "core/thread_pool.h"
#include "cpu/kernels/kernels.h"

namespace sparsegpt::cpu {

// The score of a given rank among many that come in parts, by counting: in linear time, and in an order that changes nothing.
class RankSearch {
 public:
  RankSearch(int threads, const Kernels& kernels)
      : kernels_(kernels), counts_(static_cast<size_t>(threads)), candidates_(static_cast<size_t>(threads)) {}

  // Every score must be counted before find() is called; different threads may count different parts at the same time.
  void count(int thread, const float* scores, int64_t total);

  struct Found {
    float score;
    int64_t smaller;  // than score
    int64_t equal;
  };
  // The score of `rank`, counted from 0 and less than the number of scores. part(p) gives the scores of part p < parts as a
  // std::pair of their address and number. Then forgets the scores.
  template <typename Part>
  Found find(ThreadPool& pool, int64_t parts, int64_t rank, const Part& part) {
    const Bucket bucket = bucket_of(rank);
    pool.parallel_for(parts, [&](int64_t p, int thread) {
      const auto [scores, total] = part(p);
      collect(thread, bucket, scores, total);
    });
    return rank_among_candidates(bucket, rank);
  }

 private:
  struct Bucket {
    uint32_t index;
    int64_t before;  // scores in lower buckets
  };
  Bucket bucket_of(int64_t rank) const;
  void collect(int thread, const Bucket& bucket, const float* scores, int64_t total);
  Found rank_among_candidates(const Bucket& bucket, int64_t rank);

  const Kernels& kernels_;
  // Of every thread. Empty until it counts.
  std::vector<std::vector<uint32_t>> counts_;
  struct Candidates {
    std::vector<uint32_t> keys;
    size_t used = 0;
  };
  std::vector<Candidates> candidates_;
};

// mask[i] = 1 for exactly `count` smallest of `total` finite scores, else 0; of equal scores the ones with the lowest index.
void select_smallest(const float* scores, int64_t total, int64_t count, uint8_t* mask);

// mask = 1 for the n smallest of every m consecutive scores; total is a multiple of m. Of equal ones those
// that std::nth_element puts first: with GCC's library these are the ones that PyTorch's topk takes, and so
// the reference.
void select_groups(const float* scores, int64_t total, int n, int m, uint8_t* mask);

}  // namespace sparsegpt::cpu
