// Memory for the temporaries of operations, kept from one to the next: fresh pages cost a fault each. It is the system's (see
// pages.h), so a job's peak can be told.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <type_traits>

#include "core/pages.h"

namespace sparsegpt {

class ScratchPool {
 public:
  // What is free is kept up to this size in all, the last used first; the rest goes back to the system at once. So a process
  // holds what the largest operation needs while it runs, and this much between operations.
  static constexpr size_t keep_bytes = size_t{32} << 20;

  ScratchPool() = default;
  ~ScratchPool();
  ScratchPool(const ScratchPool&) = delete;
  ScratchPool& operator=(const ScratchPool&) = delete;

  struct Block {
    std::byte* memory = nullptr;
    size_t bytes = 0;
  };
  // What lies behind the bytes asked for is forbidden (see pages.h), as is what is free.
  Block take(size_t wanted);
  void give(Block block);
  // The most that was taken at once.
  size_t peak_bytes() const { return peak_bytes_; }

 private:
  std::list<Block> free_;  // the last used first
  size_t free_bytes_ = 0;
  size_t taken_bytes_ = 0;
  size_t peak_bytes_ = 0;
};

// An uninitialised array that lives as long as this object, aligned to a page. Of one thread: see ThreadPool::scratch.
template <typename T>
class Scratch {
  static_assert(std::is_trivial_v<T>);

 public:
  // Nothing is taken for none.
  Scratch(ScratchPool& pool, int64_t count) : pool_(&pool), count_(count) {
    if (count > 0) block_ = pool.take(static_cast<size_t>(count) * sizeof(T));
  }
  ~Scratch() {
    if (count_ > 0) pool_->give(block_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // What an array of `count` takes.
  static size_t bytes(int64_t count) { return count > 0 ? rounded_to_pages(static_cast<size_t>(count) * sizeof(T)) : 0; }

  T* data() const { return reinterpret_cast<T*>(block_.memory); }
  int64_t size() const { return count_; }
  T& operator[](int64_t i) const { return data()[i]; }

 private:
  ScratchPool* pool_;
  ScratchPool::Block block_;
  int64_t count_;
};

}  // namespace sparsegpt
