#include "cpu/memory_pool.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <new>
#include <utility>

#include "core/pages.h"
#include "core/spill_file.h"

namespace sparsegpt::cpu {

namespace {

// Kept for reuse at most.
constexpr size_t keep_bytes = size_t{256} << 20;
static_assert(keep_bytes % huge_page == 0);

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
      const size_t taken = rounded_to_pages(bytes_);
      std::byte* memory = pool_->take(taken);
      forbid_bytes(memory + bytes_, taken - bytes_);
      if (file_) {
        try {
          file_->read(place_, memory, bytes_);
        } catch (...) {
          pool_->give(memory, taken);
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
  for (const auto& [memory, bytes] : free_) unmap_pages(memory, bytes);
}

std::shared_ptr<Storage> MemoryPool::storage(size_t bytes) {
  return std::make_shared<Block>(shared_from_this(), bytes == 0 ? 1 : bytes);
}

std::byte* MemoryPool::take(size_t bytes) {
  // Small buffers are malloc's: a mapping for each would be one too many.
  if (bytes < huge_page) {
    void* memory = std::aligned_alloc(4096, bytes);
    if (memory == nullptr) throw std::bad_alloc();
    return static_cast<std::byte*>(memory);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  auto best = free_.end();
  for (auto range = free_.begin(); range != free_.end(); ++range)
    if (range->second >= bytes && (best == free_.end() || range->second < best->second)) best = range;
  if (best != free_.end()) return cut(best, bytes);
  // Fresh pages are not in memory before they are touched; the free ones take the place of the first.
  std::byte* memory = map_pages(bytes);
  for (size_t filled = 0; filled < bytes && !free_.empty();) {
    const size_t piece = std::min(free_.begin()->second, bytes - filled);
    move_pages(memory + filled, cut(free_.begin(), piece), piece);
    filled += piece;
  }
  return memory;
}

std::byte* MemoryPool::cut(Ranges::iterator range, size_t bytes) {
  std::byte* memory = range->first;
  auto node = free_.extract(range);
  node.key() += bytes;
  node.mapped() -= bytes;
  if (node.mapped() > 0) free_.insert(std::move(node));
  free_bytes_ -= bytes;
  permit_bytes(memory, bytes);
  return memory;
}

void MemoryPool::give(std::byte* memory, size_t bytes) {
  if (bytes < huge_page) return std::free(memory);
  std::lock_guard<std::mutex> lock(mutex_);
  const size_t kept = std::min(bytes, keep_bytes - free_bytes_);
  if (kept < bytes) unmap_pages(memory + kept, bytes - kept);
  if (kept == 0) return;
  forbid_bytes(memory, kept);
  free_bytes_ += kept;
  auto range = free_.emplace(memory, kept).first;
  const auto join = [this](Ranges::iterator low, Ranges::iterator high) {
    if (low->first + low->second != high->first) return;
    low->second += high->second;
    free_.erase(high);
  };
  if (std::next(range) != free_.end()) join(range, std::next(range));
  if (range != free_.begin()) join(std::prev(range), range);
}

}  // namespace sparsegpt::cpu
