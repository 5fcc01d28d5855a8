#include "cuda/lane.h"

#include <algorithm>
#include <cstring>

#include "cuda/status.h"

namespace sparsegpt::cuda {

Lane::Lane() {
  try {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
    for (Pinned& buffer : pinned_) {
      check(cudaMallocHost(reinterpret_cast<void**>(&buffer.data), pinned_bytes), "pinning host memory");
      check(cudaEventCreateWithFlags(&buffer.copied, cudaEventDisableTiming), "making an event");
    }
  } catch (...) {
    close();
    throw;
  }
}

Lane::~Lane() { close(); }

void Lane::close() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  for (Pinned& buffer : pinned_) {
    if (buffer.data != nullptr) cudaFreeHost(buffer.data);
    if (buffer.copied != nullptr) cudaEventDestroy(buffer.copied);
  }
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

Lane::Pinned& Lane::next_pinned() {
  Pinned& buffer = pinned_[turn_++ % pinned_.size()];
  check(cudaEventSynchronize(buffer.copied), "waiting for a copy");
  return buffer;
}

void Lane::to_device(std::byte* device, const Tensor& in) {
  const size_t size = dtype_size(in.dtype);
  to_device(device, in.bytes(), static_cast<size_t>(in.columns) * size, static_cast<size_t>(in.rows),
            static_cast<size_t>(in.stride) * size);
}

void Lane::to_device(std::byte* device, const void* host, size_t row_bytes, size_t rows, size_t host_stride) {
  if (row_bytes == 0 || rows == 0) return;
  const auto* source = static_cast<const std::byte*>(host);
  if (host_stride == row_bytes) {
    row_bytes *= rows;
    rows = 1;
  }
  size_t row = 0, begin = 0;  // what has been copied: `row` rows and `begin` bytes of the next one
  while (row < rows) {
    Pinned& buffer = next_pinned();
    size_t filled = 0;
    while (row < rows && filled < pinned_bytes) {
      const size_t count = std::min(pinned_bytes - filled, row_bytes - begin);
      std::memcpy(buffer.data + filled, source + row * host_stride + begin, count);
      filled += count;
      begin += count;
      if (begin == row_bytes) ++row, begin = 0;
    }
    check(cudaMemcpyAsync(device, buffer.data, filled, cudaMemcpyHostToDevice, stream_), "copying to the device");
    check(cudaEventRecord(buffer.copied, stream_), "marking the stream");
    device += filled;
  }
}

void Lane::for_pieces(const void* device, size_t bytes, const std::function<void(const std::byte*, size_t)>& write) {
  const auto* source = static_cast<const std::byte*>(device);
  // One piece is on its way while the one before is written.
  Pinned* arriving = nullptr;
  size_t arriving_bytes = 0;
  const auto finish = [&] {
    check(cudaEventSynchronize(arriving->copied), "waiting for a copy");
    write(arriving->data, arriving_bytes);
  };
  while (bytes > 0) {
    const size_t count = std::min(bytes, pinned_bytes);
    Pinned& buffer = next_pinned();
    check(cudaMemcpyAsync(buffer.data, source, count, cudaMemcpyDeviceToHost, stream_), "copying from the device");
    check(cudaEventRecord(buffer.copied, stream_), "marking the stream");
    if (arriving != nullptr) finish();
    arriving = &buffer;
    arriving_bytes = count;
    source += count;
    bytes -= count;
  }
  if (arriving != nullptr) finish();
}

}  // namespace sparsegpt::cuda
