// Choosing the smallest scores; their sign bit is not looked at.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "core/thread_pool.h"
#include "cpu/kernel.h"

namespace sparsegpt::cpu {

// The score of a given rank among many that come in parts, by counting: in linear time, in memory that does not depend on their
// number, and in an order that changes nothing. Buckets by the leading bits are counted first; then the scores of the bucket with
// the rank are gathered, and where these are many, counted by the bits that are left.
class RankSearch {
 public:
  RankSearch(ThreadPool& pool, Level level);

  // The scratch memory that it takes at most, in bytes.
  static size_t scratch(int threads);

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
  Found find(int64_t parts, int64_t rank, const Part& part) {
    const Bucket bucket = bucket_of(rank);
    pool_.parallel_for(parts, [&](int64_t p, int thread) {
      const auto [scores, total] = part(p);
      gather(thread, bucket, scores, total);
    });
    const Found found = rank_in(bucket, rank);
    forget();
    return found;
  }

 private:
  struct Bucket {
    uint32_t first;  // the bits of its smallest score
    int64_t before;  // scores in lower buckets
  };
  // Of one thread.
  struct Share {
    bool counted = false;  // has something in counts_
    int64_t gathered = 0;
    std::vector<uint32_t> low_counts;  // of the gathered scores that left, by their low bits; empty while all are there
  };
  Bucket bucket_of(int64_t rank) const;
  void gather(int thread, const Bucket& bucket, const float* scores, int64_t total);
  void count_gathered(int thread);
  Found rank_in(const Bucket& bucket, int64_t rank);
  void forget();

  ThreadPool& pool_;
  const Level level_;
  Scratch<uint32_t> counts_;  // [threads][buckets]
  Scratch<uint32_t> gathered_;  // [threads][most_gathered]
  std::vector<Share> shares_;
};

// mask[i] = 1 for exactly `count` smallest of `total` finite scores, else 0; of equal scores the ones with the lowest index.
// keys: `total` elements of scratch.
void select_smallest(const float* scores, int64_t total, int64_t count, uint8_t* mask, uint32_t* keys);

// mask = 1 for the n smallest of every m consecutive scores; total is a multiple of m. Of equal ones those
// that std::nth_element puts first: with GCC's library these are the ones that PyTorch's topk takes, and so
// the reference.
void select_groups(const float* scores, int64_t total, int n, int m, uint8_t* mask);

}  // namespace sparsegpt::cpu
