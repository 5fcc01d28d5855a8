// The factorisation behind the solver: H = R Rᵀ with R upper triangular, in place (n³/3 FLOP).
#pragma once

#include <cstdint>

#include "core/thread_pool.h"
#include "cpu/kernel.h"

namespace sparsegpt::cpu {

struct FactorReport {
  double dampening = 0;  // as used, relative to mean(diag H)
  int retries = 0;       // how often it was raised tenfold because the factorisation failed
  int64_t dead_columns = 0;
};

// hessian: [n, n], rows n apart; only the upper triangle is read, and R replaces it; the lower triangle is overwritten.
// dead: [n], set to 1 where H_jj = 0. Throws NON_FINITE, and NOT_POSITIVE_DEFINITE when even dampening · 1000 fails.
FactorReport factor_hessian(ThreadPool& pool, Level level, float* hessian, int64_t n, uint8_t* dead, double dampening);

}  // namespace sparsegpt::cpu
