// Memory straight from the system. Not malloc's: it hands out buffers of some megabytes from a heap that grows with their number
// and order, so the peak of a job could not be told.
#pragma once

#include <cstddef>

namespace sparsegpt {

inline constexpr size_t huge_page = size_t{2} << 20;

// To whole pages: huge ones from the size of one on.
size_t rounded_to_pages(size_t bytes);

// bytes: rounded. Zeros, aligned to a page of that size. Throws std::bad_alloc.
std::byte* map_pages(size_t bytes);
void unmap_pages(std::byte* memory, size_t bytes);

}  // namespace sparsegpt
