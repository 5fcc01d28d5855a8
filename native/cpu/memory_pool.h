// Reuses the big buffers that a forward pass allocates and frees over and over; a fresh one costs a page fault per 4 KiB.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>

#include "core/tensor.h"

namespace sparsegpt::cpu {

// Buffers of a huge page or more are of whole ones, which serve again in buffers of other sizes: free ranges are cut and joined,
// and moved together where none is long enough. Fresh pages are taken only when none is free, so the memory in use plus the
// memory kept is never larger than the memory in use has been before: the pool's peak is what its users need at once.
class MemoryPool : public std::enable_shared_from_this<MemoryPool> {
 public:
  ~MemoryPool();
  // Storage that takes its memory from this pool when first touched and gives it back when it dies.
  std::shared_ptr<Storage> storage(size_t bytes);

 private:
  class Block;
  using Ranges = std::map<std::byte*, size_t>;

  std::byte* take(size_t bytes);
  void give(std::byte* memory, size_t bytes);
  // The first bytes of a free range, which are free no longer.
  std::byte* cut(Ranges::iterator range, size_t bytes);

  std::mutex mutex_;
  Ranges free_;  // no two touch
  size_t free_bytes_ = 0;
};

}  // namespace sparsegpt::cpu
