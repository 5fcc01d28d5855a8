// The seam to OpenBLAS: its single-threaded sgemm, called for fixed tiles of C from the thread pool, so that results do not
// depend on the number of threads and no second set of threads competes for the cores.
#pragma once

#include "cpu/gemm.h"

namespace sparsegpt::cpu::openblas {

// Whether this build has OpenBLAS and it can compute g: float32 operands, each with one unit stride.
bool serves(const Gemm& g);
void gemm(ThreadPool& pool, const Gemm& g);

}  // namespace sparsegpt::cpu::openblas
