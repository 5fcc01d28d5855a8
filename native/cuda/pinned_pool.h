// Pinned host memory for tensors that wait outside the device's memory. Only copies in one stream use it, so a buffer can be taken
// again while such a copy is still to come.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <map>
#include <mutex>

namespace sparsegpt::cuda {

// Pinning takes long, so buffers are kept, but never more than has been in use at once.
class PinnedPool {
 public:
  explicit PinnedPool(cudaStream_t stream) : stream_(stream) {}
  ~PinnedPool();
  PinnedPool(const PinnedPool&) = delete;
  PinnedPool& operator=(const PinnedPool&) = delete;

  // Throws OUT_OF_MEMORY.
  std::byte* take(size_t bytes);
  void give(std::byte* memory, size_t bytes);

 private:
  cudaStream_t stream_;
  std::mutex mutex_;
  std::multimap<size_t, std::byte*> free_;
  size_t free_bytes_ = 0, used_bytes_ = 0, peak_bytes_ = 0;
};

}  // namespace sparsegpt::cuda
