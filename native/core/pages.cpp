#include "core/pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <new>

#if defined(SPARSEGPT_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#endif

namespace sparsegpt {

namespace {

constexpr size_t page = 4096;

// At a place of the system's choice, or instead of what is mapped at `place`.
std::byte* map(size_t bytes, std::byte* place = nullptr) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (place != nullptr ? MAP_FIXED : 0);
  void* mapped = mmap(place, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  return static_cast<std::byte*>(mapped);
}

}  // namespace

size_t rounded_to_pages(size_t bytes) {
  const size_t unit = bytes >= huge_page ? huge_page : page;
  return (std::max<size_t>(bytes, 1) + unit - 1) / unit * unit;
}

std::byte* map_pages(size_t bytes) {
  if (bytes < huge_page) return map(bytes);
  std::byte* begin = map(bytes + huge_page);
  const size_t before = (huge_page - reinterpret_cast<uintptr_t>(begin) % huge_page) % huge_page;
  if (before > 0) munmap(begin, before);
  munmap(begin + before + bytes, huge_page - before);
#if defined(MADV_HUGEPAGE)
  madvise(begin + before, bytes, MADV_HUGEPAGE);
#endif
  return begin + before;
}

void unmap_pages(std::byte* memory, size_t bytes) {
  permit_bytes(memory, bytes);
  munmap(memory, bytes);
}

void move_pages(std::byte* to, std::byte* from, size_t bytes) {
  // One by one: each may belong to a mapping of its own, and the system moves pages of one at a time.
  for (size_t i = 0; i < bytes; i += huge_page) {
#if defined(__linux__)
    if (mremap(from + i, huge_page, huge_page, MREMAP_MAYMOVE | MREMAP_FIXED, to + i) != MAP_FAILED) continue;
#endif
    unmap_pages(from + i, huge_page);
    map(huge_page, to + i);
  }
}

#if defined(SPARSEGPT_ADDRESS_SANITIZER)
void forbid_bytes(std::byte* memory, size_t bytes) { ASAN_POISON_MEMORY_REGION(memory, bytes); }
void permit_bytes(std::byte* memory, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(memory, bytes); }
#else
void forbid_bytes(std::byte*, size_t) {}
void permit_bytes(std::byte*, size_t) {}
#endif

}  // namespace sparsegpt
