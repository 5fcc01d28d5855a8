// The choice among the instruction-set levels at start.
#pragma once

#include <vector>

#include "cpu/kernel.h"

namespace sparsegpt::cpu {

// All levels this processor can run, narrowest first.
std::vector<Level> available_levels();

// The widest level, or the one that the environment variable SPARSEGPT_CPU names (baseline, avx2, avx512, avx512bf16, amx). Throws
// DEVICE_UNAVAILABLE when the processor lacks that level or the name is unknown.
Level selected_level();

}  // namespace sparsegpt::cpu
