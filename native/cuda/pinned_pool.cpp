#include "cuda/pinned_pool.h"

#include <algorithm>
#include <iterator>

#include "core/error.h"
#include "cuda/status.h"

namespace sparsegpt::cuda {

PinnedPool::~PinnedPool() {
  for (const auto& [bytes, memory] : free_) cudaFreeHost(memory);
}

std::byte* PinnedPool::take(size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = free_.find(bytes);
  if (found != free_.end()) {
    std::byte* memory = found->second;
    free_.erase(found);
    free_bytes_ -= bytes;
    used_bytes_ += bytes;
    return memory;
  }
  const size_t peak = std::max(peak_bytes_, used_bytes_ + bytes);
  if (used_bytes_ + bytes + free_bytes_ > peak) check(cudaStreamSynchronize(stream_), "waiting for the device");
  while (used_bytes_ + bytes + free_bytes_ > peak) {
    const auto largest = std::prev(free_.end());
    free_bytes_ -= largest->first;
    cudaFreeHost(largest->second);
    free_.erase(largest);
  }
  void* memory = nullptr;
  const cudaError_t status = cudaMallocHost(&memory, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Error("OUT_OF_MEMORY", "the host has no memory left for activations that do not fit on the GPU: " + in_mib(bytes) +
                                     " were wanted, " + in_mib(used_bytes_) +
                                     " are in use. They can wait in a file (--offload DIR); fewer or shorter samples "
                                     "(--samples, --seqlen) and --dtype bfloat16 need less");
  }
  check(status, "pinning host memory");
  used_bytes_ += bytes;
  peak_bytes_ = peak;
  return static_cast<std::byte*>(memory);
}

void PinnedPool::give(std::byte* memory, size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  free_.emplace(bytes, memory);
  free_bytes_ += bytes;
  used_bytes_ -= bytes;
}

}  // namespace sparsegpt::cuda
