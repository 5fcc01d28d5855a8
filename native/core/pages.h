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
// Moves whole huge pages to where others are mapped, in place of these, and leaves nothing mapped where they were. Linux neither
// copies nor clears them; elsewhere fresh ones come instead, so the bytes are undefined. Throws std::bad_alloc.
void move_pages(std::byte* to, std::byte* from, size_t bytes);

// Under AddressSanitizer every access to forbidden bytes is an error, until they are permitted or unmapped. It knows malloc's
// buffers by itself, but not which part of a page is in use. Other builds do nothing.
void forbid_bytes(std::byte* memory, size_t bytes);
void permit_bytes(std::byte* memory, size_t bytes);

}  // namespace sparsegpt
