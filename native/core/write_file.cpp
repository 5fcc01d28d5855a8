#include "core/write_file.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace sparsegpt {

void write_fully(int fd, int64_t position, const std::byte* data, size_t bytes) {
  while (bytes > 0) {
    const ssize_t written = pwrite(fd, data, std::min(bytes, size_t{64} << 20), position);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      const int reason = errno;
      // Bytes of a mapped file that has become shorter.
      if (reason == EFAULT) throw Error("INVALID_CHECKPOINT", "what is to be written cannot be read any more");
      throw Error("WRITE_FAILED", reason == ENOSPC ? "the disk is full" : std::string("write: ") + std::strerror(reason));
    }
    data += written;
    position += written;
    bytes -= static_cast<size_t>(written);
  }
}

}  // namespace sparsegpt
