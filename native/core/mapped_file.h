// A file mapped read-only into memory. Pages are read when touched and can be given back after use. Pages that cannot be read any
// more, such as those of a file that has become shorter, read as zeros: require_intact() tells.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "core/page_faults.h"

namespace sparsegpt {

class MappedFile {
 public:
  // Throws FILE_NOT_FOUND when the file cannot be opened or mapped.
  static std::shared_ptr<MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // Gives the pages of [offset, offset + bytes) back to the system; they are read again when touched.
  void release_pages(size_t offset, size_t bytes) const;

  // Throws INVALID_CHECKPOINT when a page that was touched could not be read.
  void require_intact() const;

 private:
  MappedFile(std::string path, const std::byte* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size), guard_(data, size) {}
  std::string path_;
  const std::byte* data_;
  size_t size_;
  PageFaultGuard guard_;
};

}  // namespace sparsegpt
