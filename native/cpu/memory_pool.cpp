#include "cpu/memory_pool.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace sparsegpt::cpu {

namespace {

constexpr size_t huge_page = size_t{2} << 20;
// Kept for reuse at most; what exceeds it goes back to the system at once, so that the peak stays near what is in use.
constexpr size_t keep_bytes = size_t{256} << 20;

size_t rounded(size_t bytes) {
  const size_t unit = bytes >= huge_page ? huge_page : 4096;
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

class MemoryPool::Block : public Storage {
 public:
  Block(std::shared_ptr<MemoryPool> pool, size_t bytes) : pool_(std::move(pool)), bytes_(bytes) {}
  ~Block() override {
    if (memory_ != nullptr) pool_->give(memory_, rounded(bytes_));
  }
  std::byte* data() override {
    // The threads of one operation may all be the first.
    std::call_once(taken_, [this] { memory_ = pool_->take(rounded(bytes_)); });
    return memory_;
  }
  size_t size() const override { return bytes_; }

 private:
  std::shared_ptr<MemoryPool> pool_;
  size_t bytes_;
  std::once_flag taken_;
  std::byte* memory_ = nullptr;
};

MemoryPool::~MemoryPool() {
  for (const auto& [bytes, memory] : free_) std::free(memory);
}

std::shared_ptr<Storage> MemoryPool::storage(size_t bytes) {
  return std::make_shared<Block>(shared_from_this(), bytes == 0 ? 1 : bytes);
}

std::byte* MemoryPool::take(size_t bytes) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = free_.lower_bound(bytes);
    if (found != free_.end() && found->first == bytes) {
      std::byte* memory = found->second;
      free_.erase(found);
      free_bytes_ -= bytes;
      return memory;
    }
  }
  void* memory = std::aligned_alloc(bytes >= huge_page ? huge_page : 4096, bytes);
  if (memory == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (bytes >= huge_page) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return static_cast<std::byte*>(memory);
}

void MemoryPool::give(std::byte* memory, size_t bytes) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (free_bytes_ + bytes <= keep_bytes) {
      free_.emplace(bytes, memory);
      free_bytes_ += bytes;
      return;
    }
  }
  std::free(memory);
}

}  // namespace sparsegpt::cpu
