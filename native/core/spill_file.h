// A file that takes what does not fit into memory: bytes are written to it and read back by whoever knows their place. It has
// no name in its folder, so that it is gone with the process, however that ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace sparsegpt {

class SpillFile {
 public:
  // In a folder that exists. Throws WRITE_FAILED.
  static std::shared_ptr<SpillFile> create(const std::string& folder);
  ~SpillFile();
  SpillFile(const SpillFile&) = delete;
  SpillFile& operator=(const SpillFile&) = delete;

  // Writes the bytes to a free place and returns it. Throws WRITE_FAILED.
  int64_t write(const std::byte* data, size_t bytes);
  // Reads what was written there. Throws WRITE_FAILED, too, when the file has become unreadable.
  void read(int64_t place, std::byte* data, size_t bytes) const;
  // The place may be written again.
  void free(int64_t place, size_t bytes);

 private:
  SpillFile(std::string folder, int fd) : folder_(std::move(folder)), fd_(fd) {}
  std::string folder_;
  int fd_;
  std::mutex mutex_;
  int64_t end_ = 0;
  std::multimap<size_t, int64_t> free_;  // bytes to place
};

}  // namespace sparsegpt
