#include "core/scratch.h"

#include <algorithm>

namespace sparsegpt {

ScratchPool::~ScratchPool() {
  for (const Block& block : free_) unmap_pages(block.memory, block.bytes);
}

ScratchPool::Block ScratchPool::take(size_t wanted) {
  const size_t bytes = rounded_to_pages(wanted);
  // The smallest that is large enough; not one that a small array would keep from a large one.
  auto best = free_.end();
  for (auto block = free_.begin(); block != free_.end(); ++block)
    if (block->bytes >= bytes && block->bytes / 2 <= bytes && (best == free_.end() || block->bytes < best->bytes))
      best = block;
  Block block;
  if (best != free_.end()) {
    block = *best;
    free_.erase(best);
    free_bytes_ -= block.bytes;
  } else {
    block = {map_pages(bytes), bytes};
  }
  taken_bytes_ += block.bytes;
  peak_bytes_ = std::max(peak_bytes_, taken_bytes_);
  permit_bytes(block.memory, wanted);
  forbid_bytes(block.memory + wanted, block.bytes - wanted);
  return block;
}

void ScratchPool::give(Block block) {
  taken_bytes_ -= block.bytes;
  if (block.bytes > keep_bytes) {
    unmap_pages(block.memory, block.bytes);
    return;
  }
  forbid_bytes(block.memory, block.bytes);
  free_.push_front(block);
  for (free_bytes_ += block.bytes; free_bytes_ > keep_bytes; free_.pop_back()) {
    unmap_pages(free_.back().memory, free_.back().bytes);
    free_bytes_ -= free_.back().bytes;
  }
}

}  // namespace sparsegpt
