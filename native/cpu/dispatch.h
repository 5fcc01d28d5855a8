// The instruction-set levels the CPU kernels are compiled for, and the choice among them at start.
#pragma once

#include <string>
#include <vector>

namespace sparsegpt::cpu {

struct Kernels;

// All levels this processor can run, narrowest first.
std::vector<const Kernels*> available_kernels();

// The widest level, or the one that the environment variable SPARSEGPT_CPU names (baseline, avx2, avx512,
// avx512bf16). Throws
// DEVICE_UNAVAILABLE when the processor lacks that level or the name is unknown.
const Kernels& selected_kernels();

}  // namespace sparsegpt::cpu
