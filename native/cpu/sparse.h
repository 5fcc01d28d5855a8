// Matrix products that skip the zeros of B: the forward pass of a pruned layer. Half of B being zero, in any pattern, takes
// about two thirds of the time.
#pragma once

#include "cpu/gemm.h"

namespace sparsegpt::cpu {

// What gemm() computes, for a whole C; false, and nothing done, where B has too few zeros (some of its columns are looked at)
// or A too few rows for that to be faster. The result does not depend on the number of threads.
bool multiply_sparse(ThreadPool& pool, const Kernels& kernels, const Gemm& g);

}  // namespace sparsegpt::cpu
