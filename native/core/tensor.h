// A tensor is a typed, strided window [rows, columns] onto storage that lives on a device. Vectors are [1, n].
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/dtype.h"

namespace sparsegpt {

class SpillFile;

// Bytes that a tensor looks at: device memory or a mapped file.
class Storage {
 public:
  virtual ~Storage() = default;
  // The first byte. Device memory is allocated at the first call, which happens on the device's queue thread: so memory
  // is taken in the order of execution, not of enqueuing, and a buffer freed by one operation serves the next.
  virtual std::byte* data() = 0;
  virtual size_t size() const = 0;
  virtual bool read_only() const { return false; }
  // Whether data() may be read by the processor: a mapped file and memory of the CPU backend, not that of a GPU.
  virtual bool on_host() const { return true; }
  // Throws INVALID_CHECKPOINT when bytes that were read were not the file's, since it has become shorter: see MappedFile.
  virtual void require_intact() const {}
  // Hints that the bytes will not be read again soon. Throws as require_intact does.
  virtual void release_pages(size_t /*offset*/, size_t /*bytes*/) {}
  // Moves the bytes out of the device's memory until data() is called again: to `file`, or on a GPU to the host's memory when
  // there is no file. Nothing where there is nowhere to go. Throws WRITE_FAILED.
  virtual void offload(const std::shared_ptr<SpillFile>& /*file*/) {}
};

struct Tensor {
  std::shared_ptr<Storage> storage;
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride = 0;  // elements from one row to the next
  int64_t offset = 0;  // bytes from the start of the storage to the first element

  explicit operator bool() const { return storage != nullptr; }
  int64_t size() const { return rows * columns; }
  bool contiguous() const { return stride == columns || rows <= 1; }
  std::byte* bytes() const { return storage->data() + offset; }

  // The first element; throws INTERNAL when the tensor holds another type.
  template <typename T>
  T* data() const;

  // Columns [begin, begin + count) of every row, sharing the storage.
  Tensor column_range(int64_t begin, int64_t count) const;
  // Rows [begin, begin + count), sharing the storage.
  Tensor row_range(int64_t begin, int64_t count) const;
  // The same window so many elements further on in the storage.
  Tensor moved(int64_t elements) const;
  // The elements in another shape, sharing the storage; of contiguous tensors only.
  Tensor reshaped(int64_t new_rows, int64_t new_columns) const;
};

std::string describe(const Tensor& tensor);

}  // namespace sparsegpt
