#include "cuda/cuda_backend.h"

#include <cstring>
#include <utility>

#include "core/require.h"
#include "cuda/kernels.h"

namespace sparsegpt::cuda {

namespace {

class TimingEvent {
 public:
  TimingEvent() { check(cudaEventCreateWithFlags(&event_, 0), "making an event"); }
  ~TimingEvent() { cudaEventDestroy(event_); }
  TimingEvent(const TimingEvent&) = delete;
  TimingEvent& operator=(const TimingEvent&) = delete;

  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "marking the stream"); }
  double seconds_since(const TimingEvent& start) const {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start.event_, event_), "reading the time");
    return static_cast<double>(milliseconds) * 1e-3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

CudaBackend::CudaBackend(int index) : context_(std::make_shared<Context>(index)), stream_(context_->stream()) {}

CudaBackend::~CudaBackend() { context_->stop_loading(); }

std::string CudaBackend::description() const { return context_->description(); }

void CudaBackend::synchronize() {
  context_->select();
  context_->synchronize();
}

// By the device's clock: the host takes part of a millisecond to see that the device is done.
double CudaBackend::time(const std::function<void()>& work) {
  context_->select();
  TimingEvent start, end;
  start.record(stream_);
  work();
  end.record(stream_);
  context_->synchronize();
  return end.seconds_since(start);
}

std::shared_ptr<Storage> CudaBackend::allocate(size_t bytes) { return context_->storage(bytes); }

void CudaBackend::copy_in(const Tensor& out, const void* host) {
  context_->select();
  context_->to_device(out, host);
}

void CudaBackend::copy_out(void* host, const Tensor& tensor) {
  if (tensor.storage->on_host()) {
    std::memcpy(host, tensor.bytes(), byte_size(tensor));
  } else {
    context_->select();
    context_->to_host(host, tensor.bytes(), byte_size(tensor));
  }
}

Tensor CudaBackend::local(const Tensor& tensor) {
  if (!tensor || !tensor.storage->on_host()) return tensor;
  const Tensor copy = scratch(tensor.dtype, tensor.rows, tensor.columns);
  context_->lane().to_device(copy.bytes(), tensor);
  return copy;
}

Tensor CudaBackend::local(const Tensor& tensor, DType dtype) {
  const Tensor near = local(tensor);
  if (!near || near.dtype == dtype) return near;
  const Tensor converted = scratch(dtype, tensor.rows, tensor.columns);
  cast(stream_, view(converted), view(near));
  return converted;
}

Tensor CudaBackend::zeroed(int64_t count) {
  const Tensor t = scratch(DType::f64, 1, count);
  clear(t);
  return t;
}

void CudaBackend::clear(const Tensor& tensor) {
  check(cudaMemsetAsync(tensor.bytes(), 0, byte_size(tensor), stream_), "clearing memory");
}

int64_t* CudaBackend::watch_ids(const char* code, std::function<std::string(int64_t, int64_t)> message) {
  return context_->watch(code, [message = std::move(message)](int64_t number) {
    return message(number >> 32, static_cast<int32_t>(static_cast<uint32_t>(number)));
  });
}

}  // namespace sparsegpt::cuda
