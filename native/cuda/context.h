// What the CUDA backend needs of the CUDA runtime: streams, library handles, stream-ordered memory, copies from and to the
// host, and the list of what kernels have found wrong.
//
// Everything runs on `stream`, but what load() brings from mapped files (see Loader).
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/registry.h"
#include "core/tensor.h"
#include "cuda/lane.h"
#include "cuda/loader.h"
#include "cuda/pinned_pool.h"
#include "cuda/status.h"

namespace sparsegpt::cuda {

// The GPUs that the backend can use, in the order of CUDA, or the reason why there is none.
Availability probe();

class Context : public std::enable_shared_from_this<Context> {
 public:
  // On one of the devices that probe() lists. Throws DEVICE_UNAVAILABLE.
  explicit Context(int index);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  std::string description() const;

  // Makes this thread's calls go to the device. Every thread that makes some selects it first: the one that runs operations, the
  // loader's, and any that frees memory.
  void select() const { check(cudaSetDevice(device_), "choosing the device"); }

  cudaStream_t stream() const { return lane_->stream(); }
  cublasHandle_t blas() const { return blas_; }
  cusolverDnHandle_t solver() const { return solver_; }
  cusolverDnParams_t solver_options() const { return solver_options_; }

  // Device memory, taken when first touched.
  std::shared_ptr<Storage> storage(size_t bytes);
  // A contiguous tensor for the time of an operation: its memory goes back in the order of the stream.
  Tensor scratch(DType dtype, int64_t rows, int64_t columns) { return scratch(dtype, rows, columns, stream()); }
  Tensor scratch(DType dtype, int64_t rows, int64_t columns, cudaStream_t stream);

  // Fills `out`, in device memory, from `in`, in host memory that does not change, while other operations run; whoever looks
  // at `out` waits for it. Without `place` both are of one type and `out` is contiguous. `operation` is named in errors, which
  // show when `out` is used and in synchronize().
  void load(const char* operation, const Tensor& out, const Tensor& in, PlaceRows place);
  // Drops the loads that have not begun; called before the last use of the device.
  void stop_loading();

  void to_device(const Tensor& out, const void* host);
  // Waits for the device.
  void to_host(void* host, const void* device, size_t bytes);
  Lane& lane() { return *lane_; }

  // What a kernel may find wrong without the host waiting for it: a place on the device for the smallest number (of a row,
  // say) that is wrong, which report() in element.cuh writes. synchronize() throws Error(code, message(number)).
  int64_t* watch(const char* code, std::function<std::string(int64_t)> message);
  // Waits for the device and throws what was found since the last time.
  void synchronize();

 private:
  class Memory;
  friend class Memory;
  struct Watch {
    const char* code;
    std::function<std::string(int64_t)> message;
  };

  std::byte* take(size_t bytes, cudaStream_t stream);
  void close();

  static constexpr int64_t most_watches = 256;

  int device_ = 0;  // CUDA's number
  int index_ = 0;  // among those that probe() lists
  DeviceInfo info_;
  bool one_of_several_ = false;
  std::unique_ptr<Lane> lane_;
  std::unique_ptr<Loader> loader_;
  std::unique_ptr<PinnedPool> pinned_;
  cublasHandle_t blas_ = nullptr;
  cusolverDnHandle_t solver_ = nullptr;
  cusolverDnParams_t solver_options_ = nullptr;
  int64_t* found_ = nullptr;  // [most_watches] on the device
  int64_t* found_host_ = nullptr;  // the same, pinned
  std::vector<Watch> watches_;
};

}  // namespace sparsegpt::cuda
