// The CPU backend: tensors in main memory, threads from a pool, kernels of the widest instruction set the processor has. Its
// operations are in the files of their themes.
#pragma once

#include <memory>

#include "core/backend.h"
#include "core/thread_pool.h"
#include "cpu/kernel.h"
#include "cpu/memory_pool.h"

namespace sparsegpt {

namespace cpu {

class CpuBackend : public Backend {
 public:
  CpuBackend(int threads, Level level);

  std::string description() const override { return description(level_, pool_.threads()); }
  static std::string description(Level level, int threads);
  double time(const std::function<void()>& enqueue) override;
  std::shared_ptr<Storage> allocate(size_t bytes) override;
  bool in_host_memory() const override { return true; }

  const ScratchPool& scratch_pool() const { return pool_.scratch_pool(); }

 protected:
  void copy_in(const Tensor& out, const void* host) override;
  void copy_out(void* host, const Tensor& tensor) override;
#define SPARSEGPT_COMPUTE(Operation) void compute(const Operation& o) override;
  SPARSEGPT_OPERATIONS(SPARSEGPT_COMPUTE)
#undef SPARSEGPT_COMPUTE

 private:
  const Level level_;
  ThreadPool pool_;
  std::shared_ptr<MemoryPool> memory_;
};

}  // namespace cpu

// threads: 0 for one per core. Throws DEVICE_UNAVAILABLE when SPARSEGPT_CPU names a level that this processor lacks.
std::unique_ptr<Backend> make_cpu_backend(int threads);

}  // namespace sparsegpt
