#include "core/scratch.h"

#include <sys/mman.h>

#include <new>

namespace sparsegpt {

namespace {

constexpr size_t page = 4096, huge_page = size_t{2} << 20;

}  // namespace

ScratchPool::~ScratchPool() {
  for (const Block& block : free_) munmap(block.memory, block.bytes);
}

ScratchPool::Block ScratchPool::take(size_t bytes) {
  const size_t unit = bytes >= huge_page ? huge_page : page;
  bytes = bytes == 0 ? unit : (bytes + unit - 1) / unit * unit;
  // The smallest that is large enough; not one that a small array would keep from a large one.
  auto best = free_.end();
  for (auto block = free_.begin(); block != free_.end(); ++block)
    if (block->bytes >= bytes && block->bytes / 2 <= bytes && (best == free_.end() || block->bytes < best->bytes))
      best = block;
  if (best != free_.end()) {
    const Block block = *best;
    free_.erase(best);
    free_bytes_ -= block.bytes;
    return block;
  }
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (bytes >= huge_page) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return {memory, bytes};
}

void ScratchPool::give(Block block) {
  if (block.bytes > keep_bytes) {
    munmap(block.memory, block.bytes);
    return;
  }
  free_.push_front(block);
  for (free_bytes_ += block.bytes; free_bytes_ > keep_bytes; free_.pop_back()) {
    munmap(free_.back().memory, free_.back().bytes);
    free_bytes_ -= free_.back().bytes;
  }
}

}  // namespace sparsegpt
