#include "core/spill_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "core/write_file.h"

namespace sparsegpt {

std::shared_ptr<SpillFile> SpillFile::create(const std::string& folder) {
  std::string path = folder + "/sparsegpt-XXXXXX";
  const int fd = mkostemp(path.data(), O_CLOEXEC);
  if (fd < 0) throw Error("WRITE_FAILED", "cannot create a file in " + folder + ": " + std::strerror(errno));
  unlink(path.c_str());
  return std::shared_ptr<SpillFile>(new SpillFile(folder, fd));
}

SpillFile::~SpillFile() { close(fd_); }

int64_t SpillFile::write(const std::byte* data, size_t bytes) {
  int64_t place;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = free_.find(bytes);
    if (found != free_.end()) {
      place = found->second;
      free_.erase(found);
    } else {
      place = end_;
      end_ += static_cast<int64_t>(bytes);
    }
  }
  try {
    write_fully(fd_, place, data, bytes);
  } catch (const Error& error) {
    free(place, bytes);
    throw Error(error.code(), "a file in " + folder_ + " for activations: " + error.what());
  }
  return place;
}

void SpillFile::read(int64_t place, std::byte* data, size_t bytes) const {
  while (bytes > 0) {
    const ssize_t count = pread(fd_, data, std::min(bytes, size_t{64} << 20), place);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      const char* reason = count < 0 ? std::strerror(errno) : "it has become shorter";
      throw Error("WRITE_FAILED", "a file in " + folder_ + " for activations cannot be read back: " + reason);
    }
    data += count;
    place += count;
    bytes -= static_cast<size_t>(count);
  }
}

void SpillFile::free(int64_t place, size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  free_.emplace(bytes, place);
}

}  // namespace sparsegpt
