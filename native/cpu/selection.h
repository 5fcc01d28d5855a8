// Choosing the smallest scores.
#pragma once

#include <cstdint>

#include "core/thread_pool.h"

namespace sparsegpt::cpu {

// mask[i] = 1 for exactly `count` smallest of `total` non-negative finite scores, else 0; of equal scores the
// ones with the lowest index. Linear time; the result does not depend on the number of threads.
void select_smallest(ThreadPool& pool, const float* scores, int64_t total, int64_t count, uint8_t* mask);

// The same on one thread, for one row among many.
void select_smallest(const float* scores, int64_t total, int64_t count, uint8_t* mask);

// mask = 1 for the n smallest of every m consecutive scores; total is a multiple of m. Of equal ones those
// that std::nth_element puts first: with GCC's library these are the ones that PyTorch's topk takes, and so
// the reference.
void select_groups(const float* scores, int64_t total, int n, int m, uint8_t* mask);

}  // namespace sparsegpt::cpu
