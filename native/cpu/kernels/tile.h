// The register tile of the GEMM: 2 · mr accumulators, 2 registers for B, 1 broadcast of A; there are 32 registers with AVX-512 and
// 16 otherwise.
#pragma once

#include "cpu/gemm.h"
#include "cpu/kernels/vec.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

constexpr int64_t mr = width == 16 ? 12 : width == 8 ? 6 : 4;
constexpr int64_t nr = 2 * width;

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
