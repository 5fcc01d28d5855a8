// Reuses the big buffers that a forward pass allocates and frees over and over; a fresh one costs a page fault per 4 KiB.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>

#include "core/tensor.h"

namespace sparsegpt::cpu {

// What it keeps for reuse never makes the memory in use plus the memory kept larger than the memory in use has been before, so
// the pool's peak is what its users need at once.
class MemoryPool : public std::enable_shared_from_this<MemoryPool> {
 public:
  ~MemoryPool();
  // Storage that takes its memory from this pool when first touched and gives it back when it dies.
  std::shared_ptr<Storage> storage(size_t bytes);

 private:
  class Block;
  std::byte* take(size_t bytes);
  void give(std::byte* memory, size_t bytes);

  std::mutex mutex_;
  std::multimap<size_t, std::byte*> free_;
  size_t free_bytes_ = 0, used_bytes_ = 0, peak_bytes_ = 0;
};

}  // namespace sparsegpt::cpu
