// A stream, and the pinned buffers through which data passes between it and pageable host memory. Used by one thread at a time.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <functional>

#include "core/tensor.h"

namespace sparsegpt::cuda {

class Lane {
 public:
  Lane();
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  cudaStream_t stream() const { return stream_; }

  // Copies rows of `row_bytes`, `host_stride` bytes apart on the host, one after another to `device`. The host memory may
  // change as soon as this returns.
  void to_device(std::byte* device, const void* host, size_t row_bytes, size_t rows, size_t host_stride);
  // The rows of a tensor in host memory.
  void to_device(std::byte* device, const Tensor& in);
  // Calls write(data, bytes) for the device's bytes, piece by piece in order. Waits for the stream.
  void for_pieces(const void* device, size_t bytes, const std::function<void(const std::byte*, size_t)>& write);

 private:
  struct Pinned {
    std::byte* data = nullptr;
    cudaEvent_t copied = nullptr;  // when the last copy from or to the buffer has finished
  };
  // The next buffer, once its last copy has finished.
  Pinned& next_pinned();
  void close();

  static constexpr size_t pinned_bytes = size_t{8} << 20;

  cudaStream_t stream_ = nullptr;
  std::array<Pinned, 4> pinned_;
  size_t turn_ = 0;
};

}  // namespace sparsegpt::cuda
