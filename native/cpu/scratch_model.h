// What the CPU backend's operations take from the pool's scratch (core/scratch.h), by the functions that size it there: each is
// defined beside the operation. Between operations the pool keeps up to ScratchPool::keep_bytes of it.
#pragma once

#include "core/backend.h"
#include "cpu/kernel.h"

namespace sparsegpt::cpu {

class CpuScratch : public ScratchModel {
 public:
  CpuScratch(int threads, Level level) : threads_(threads), level_(level) {}

  using ScratchModel::bytes;
  size_t bytes(const Linear& o) const override;
  size_t bytes(const Attention& o) const override;
  size_t bytes(const CrossEntropy& o) const override;
  size_t bytes(const AccumulateGram& o) const override;
  size_t bytes(const AccumulateProduct& o) const override;
  size_t bytes(const Scores& o) const override;
  size_t bytes(const SelectMask& o) const override;
  size_t bytes(const FactorHessian& o) const override;
  size_t bytes(const TriangularProduct& o) const override;
  size_t bytes(const ConjugateGradients& o) const override;
  size_t bytes(const PruneSparsegpt& o) const override;
  size_t bytes(const Multiply& o) const override;
  size_t bytes(const NormGradient& o) const override;
  size_t bytes(const AttentionGradient& o) const override;
  size_t bytes(const KlDivergence& o) const override;
  size_t bytes(const MultiplyStrips& o) const override;

 private:
  const int threads_;
  const Level level_;
};

// On one thread per core. Throws DEVICE_UNAVAILABLE as selected_level() does.
const ScratchModel& scratch_model();

}  // namespace sparsegpt::cpu
