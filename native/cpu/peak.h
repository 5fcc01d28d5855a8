// What the processor can do at most, to measure everything else against.
#pragma once

#include <cstddef>

#include "core/dtype.h"
#include "core/thread_pool.h"
#include "cpu/kernel.h"

namespace sparsegpt::cpu {

// Runs 16 independent chains of multiply-adds in the registers of every thread, some ten milliseconds long, with the widest
// instruction that the selected level has for products of this type (for bfloat16 TDPBF16PS or VDPBF16PS where it has one).
// Returns how many floating-point operations that were; the caller looks at the clock.
double multiply_adds(ThreadPool& pool, DType dtype);

SPARSEGPT_KERNEL(float_chains, double, int64_t rounds);
SPARSEGPT_PAIRS_KERNEL(pair_chains, double, int64_t rounds);
SPARSEGPT_TILES_KERNEL(tile_chains, double, int64_t rounds);

// Reads all words once, on every thread a part.
void read_memory(ThreadPool& pool, const uint32_t* words, size_t count);
SPARSEGPT_KERNEL(read_vectors, uint32_t, const uint32_t* p, int64_t count);

}  // namespace sparsegpt::cpu
