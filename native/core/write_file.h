// Writing to a file at a position, whatever the system makes of it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsegpt {

// Throws WRITE_FAILED.
void write_fully(int fd, int64_t position, const std::byte* data, size_t bytes);

}  // namespace sparsegpt
