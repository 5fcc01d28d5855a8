// What the CUDA backend needs of the CUDA runtime: streams, library handles, stream-ordered memory, copies from and to the
// host, and the list of what kernels have found wrong.
//
// Everything runs on `stream`. Data from the host (mapped files, uploads) travels through pinned buffers on a second stream,
// so that the copies for the operations to come overlap the kernels of the ones before.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/cuda_library.h"
#include "core/tensor.h"

namespace sparsegpt::cuda {

// Throw Error: OUT_OF_MEMORY, INTERNAL.
void check(cudaError_t status, const char* what);
void check(cublasStatus_t status, const char* what);
void check(cusolverStatus_t status, const char* what);

CudaDevice probe();

class Context : public std::enable_shared_from_this<Context> {
 public:
  // Throws DEVICE_UNAVAILABLE.
  Context();
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  std::string description() const;

  cudaStream_t stream() const { return stream_; }
  cublasHandle_t blas() const { return blas_; }
  cusolverDnHandle_t solver() const { return solver_; }
  cusolverDnParams_t solver_options() const { return solver_options_; }

  // Device memory, taken when first touched.
  std::shared_ptr<Storage> storage(size_t bytes);
  // A contiguous tensor for the time of an operation: its memory goes back in the order of the stream.
  Tensor scratch(DType dtype, int64_t rows, int64_t columns);

  // Copies rows of `row_bytes`, `host_stride` bytes apart on the host, one after another to the start of `out`, whose
  // storage is the device's. The host memory may change as soon as this returns.
  void to_device(const Tensor& out, const void* host, size_t row_bytes, size_t rows, size_t host_stride);
  // Waits for the device.
  void to_host(void* host, const void* device, size_t bytes);
  // Calls write(data, bytes) for the device's bytes, piece by piece in order.
  void for_pieces(const void* device, size_t bytes, const std::function<void(const std::byte*, size_t)>& write);

  // What a kernel may find wrong without the host waiting for it: a place on the device for the smallest number (of a row,
  // say) that is wrong, which fault() in kernels.h writes. synchronize() throws Error(code, message(number)).
  int64_t* watch(const char* code, std::function<std::string(int64_t)> message);
  // Waits for the device and throws what was found since the last time.
  void synchronize();

 private:
  class Memory;
  friend class Memory;
  struct Pinned {
    std::byte* data = nullptr;
    cudaEvent_t copied = nullptr;  // when the last copy from or to the buffer has finished
  };
  struct Watch {
    const char* code;
    std::function<std::string(int64_t)> message;
  };

  std::byte* take(size_t bytes, cudaStream_t stream);
  // The next pinned buffer, once its last copy has finished.
  Pinned& next_pinned();
  void close();

  static constexpr size_t pinned_bytes = size_t{8} << 20;
  static constexpr int64_t most_watches = 256;

  std::string name_;
  size_t memory_ = 0;
  cudaStream_t stream_ = nullptr, copy_stream_ = nullptr;
  cudaEvent_t copied_ = nullptr, reached_ = nullptr;
  cublasHandle_t blas_ = nullptr;
  cusolverDnHandle_t solver_ = nullptr;
  cusolverDnParams_t solver_options_ = nullptr;
  std::array<Pinned, 4> pinned_;
  size_t turn_ = 0;
  int64_t* found_ = nullptr;  // [most_watches] on the device
  int64_t* found_host_ = nullptr;  // the same, pinned
  std::vector<Watch> watches_;
};

}  // namespace sparsegpt::cuda
