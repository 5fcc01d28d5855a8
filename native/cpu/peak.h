// What the processor can do at most, to measure everything else against.
#pragma once

#include "core/dtype.h"
#include "core/thread_pool.h"

namespace sparsegpt::cpu {

// Runs 16 independent chains of multiply-adds in the registers of every thread, some ten milliseconds long, with the widest
// instruction that the selected level has for products of this type (VDPBF16PS for bfloat16 where the processor has it).
// Returns how many floating-point operations that were; the caller looks at the clock.
double multiply_adds(ThreadPool& pool, DType dtype);

}  // namespace sparsegpt::cpu
