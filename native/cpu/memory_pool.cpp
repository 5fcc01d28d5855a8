#include "cpu/memory_pool.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <new>
#include <utility>
#include <vector>

#include "core/pages.h"
#include "core/spill_file.h"

namespace sparsegpt::cpu {

namespace {

// Kept for reuse at most.
constexpr size_t keep_bytes = size_t{256} << 20;

// Small buffers are malloc's: a mapping for each would be one too many.
std::byte* allocate(size_t bytes) {
  if (bytes >= huge_page) return map_pages(bytes);
  void* memory = std::aligned_alloc(4096, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return static_cast<std::byte*>(memory);
}

void release(std::byte* memory, size_t bytes) {
  if (bytes >= huge_page) {
    unmap_pages(memory, bytes);
  } else {
    std::free(memory);
  }
}

}  // namespace

class MemoryPool::Block : public Storage {
 public:
  Block(std::shared_ptr<MemoryPool> pool, size_t bytes) : pool_(std::move(pool)), bytes_(bytes) {}
  ~Block() override {
    if (memory_ != nullptr) pool_->give(memory_, rounded_to_pages(bytes_));
    if (file_) file_->free(place_, bytes_);
  }
  std::byte* data() override {
    std::byte* memory = memory_.load(std::memory_order_acquire);
    return memory != nullptr ? memory : bring();
  }
  size_t size() const override { return bytes_; }

  void offload(const std::shared_ptr<SpillFile>& file) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!file || memory_ == nullptr) return;
    place_ = file->write(memory_, bytes_);
    file_ = file;
    pool_->give(memory_.exchange(nullptr), rounded_to_pages(bytes_));
  }

 private:
  // The threads of one operation may all be the first.
  std::byte* bring() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (memory_ == nullptr) {
      std::byte* memory = pool_->take(rounded_to_pages(bytes_));
      if (file_) {
        try {
          file_->read(place_, memory, bytes_);
        } catch (...) {
          pool_->give(memory, rounded_to_pages(bytes_));
          throw;
        }
        std::exchange(file_, nullptr)->free(place_, bytes_);
      }
      memory_.store(memory, std::memory_order_release);
    }
    return memory_;
  }

  std::shared_ptr<MemoryPool> pool_;
  size_t bytes_;
  std::mutex mutex_;
  std::atomic<std::byte*> memory_{nullptr};
  // Where the bytes are while they are offloaded.
  std::shared_ptr<SpillFile> file_;
  int64_t place_ = 0;
};

MemoryPool::~MemoryPool() {
  for (const auto& [bytes, memory] : free_) release(memory, bytes);
}

std::shared_ptr<Storage> MemoryPool::storage(size_t bytes) {
  return std::make_shared<Block>(shared_from_this(), bytes == 0 ? 1 : bytes);
}

std::byte* MemoryPool::take(size_t bytes) {
  std::vector<std::pair<size_t, std::byte*>> surplus;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    used_bytes_ += bytes;
    const auto found = free_.find(bytes);
    if (found != free_.end()) {
      std::byte* memory = found->second;
      free_.erase(found);
      free_bytes_ -= bytes;
      return memory;
    }
    peak_bytes_ = std::max(peak_bytes_, used_bytes_);
    while (used_bytes_ + free_bytes_ > peak_bytes_) {
      const auto largest = std::prev(free_.end());
      free_bytes_ -= largest->first;
      surplus.push_back(*largest);
      free_.erase(largest);
    }
  }
  for (const auto& [size, memory] : surplus) release(memory, size);
  try {
    return allocate(bytes);
  } catch (...) {
    std::lock_guard<std::mutex> lock(mutex_);
    used_bytes_ -= bytes;
    throw;
  }
}

void MemoryPool::give(std::byte* memory, size_t bytes) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    used_bytes_ -= bytes;
    if (free_bytes_ + bytes <= keep_bytes) {
      free_.emplace(bytes, memory);
      free_bytes_ += bytes;
      return;
    }
  }
  release(memory, bytes);
}

}  // namespace sparsegpt::cpu
