#include "cuda/context.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace sparsegpt::cuda {

namespace {

// A watch's number before anything is found: every byte is 0x7f, so that a memset makes it.
constexpr int nothing_byte = 0x7f;
constexpr int64_t nothing = 0x7f7f7f7f7f7f7f7f;

std::string in_mib(size_t bytes) { return std::to_string((bytes + (size_t{1} << 20) - 1) >> 20) + " MiB"; }

[[noreturn]] void throw_out_of_memory(size_t wanted) {
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  const std::string size = wanted > 0 ? in_mib(wanted) + " were wanted, " : "";
  throw Error("OUT_OF_MEMORY", "the GPU has no memory left: " + size + in_mib(free) + " of " + in_mib(total) +
                                   " are free; fewer or shorter calibration samples (samples, sequenceLength) or dtype "
                                   "\"bfloat16\" need less, device \"cpu\" needs none");
}

}  // namespace

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that is not sticky must not show again in a later call
  if (status == cudaErrorMemoryAllocation) throw_out_of_memory(0);
  throw Error("INTERNAL", std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw_out_of_memory(0);
  throw Error("INTERNAL", std::string("cuBLAS: ") + what + ": " + cublasGetStatusString(status));
}

void check(cusolverStatus_t status, const char* what) {
  if (status == CUSOLVER_STATUS_SUCCESS) return;
  if (status == CUSOLVER_STATUS_ALLOC_FAILED) throw_out_of_memory(0);
  throw Error("INTERNAL", std::string("cuSOLVER: ") + what + ": status " + std::to_string(static_cast<int>(status)));
}

CudaDevice probe() {
  CudaDevice device;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver) {
    device.reason = "the NVIDIA driver is missing or older than the CUDA version of this build; install a newer driver";
  } else if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
    device.reason = "there is no NVIDIA GPU, or CUDA_VISIBLE_DEVICES hides it";
  } else if (status != cudaSuccess) {
    device.reason = std::string("CUDA does not start: ") + cudaGetErrorString(status);
  }
  if (!device.reason.empty()) return device;
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
    device.reason = "the GPU does not answer";
  } else if (properties.major < 8) {
    device.reason = std::string(properties.name) + " has compute capability " + std::to_string(properties.major) + "." +
                    std::to_string(properties.minor) + "; 8.0 (Ampere) or later is needed";
  } else {
    device.name = properties.name;
    device.memory = properties.totalGlobalMem;
  }
  return device;
}

// Device memory. It is taken by the queue thread and given back by whichever thread drops the last reference; by then every
// kernel that uses it is in the stream, so freeing in the order of the stream is safe.
class Context::Memory : public Storage {
 public:
  Memory(std::shared_ptr<Context> context, size_t bytes) : context_(std::move(context)), bytes_(bytes) {}
  ~Memory() override {
    if (memory_ != nullptr) cudaFreeAsync(memory_, context_->stream_);
  }
  std::byte* data() override { return taken_on(context_->stream_); }
  size_t size() const override { return bytes_; }
  bool on_host() const override { return false; }

  bool taken() const { return memory_ != nullptr; }
  std::byte* taken_on(cudaStream_t stream) {
    if (memory_ == nullptr) memory_ = context_->take(bytes_, stream);
    return memory_;
  }

 private:
  std::shared_ptr<Context> context_;
  size_t bytes_;
  std::byte* memory_ = nullptr;
};

Context::Context() {
  const CudaDevice device = probe();
  if (!device.reason.empty()) throw Error("DEVICE_UNAVAILABLE", device.reason);
  name_ = device.name;
  memory_ = device.memory;
  try {
    check(cudaSetDevice(0), "choosing the device");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
    check(cudaStreamCreateWithFlags(&copy_stream_, cudaStreamNonBlocking), "making a stream");
    check(cudaEventCreateWithFlags(&copied_, cudaEventDisableTiming), "making an event");
    check(cudaEventCreateWithFlags(&reached_, cudaEventDisableTiming), "making an event");
    for (Pinned& buffer : pinned_) {
      check(cudaMallocHost(reinterpret_cast<void**>(&buffer.data), pinned_bytes), "pinning host memory");
      check(cudaEventCreateWithFlags(&buffer.copied, cudaEventDisableTiming), "making an event");
    }
    // What is freed stays with the process for reuse. Reuse must not make one stream wait for the other, or copies would no
    // longer overlap kernels.
    cudaMemPool_t pool = nullptr;
    check(cudaDeviceGetDefaultMemPool(&pool, 0), "finding the memory pool");
    uint64_t keep = UINT64_MAX;
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "setting up the memory pool");
    int off = 0;
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolReuseAllowInternalDependencies, &off), "setting up the memory pool");
    check(cublasCreate(&blas_), "starting");
    check(cublasSetStream(blas_, stream_), "setting the stream");
    // The default has no TF32; partial sums of half-precision products stay in float32 too.
    constexpr auto precision = CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    check(cublasSetMathMode(blas_, static_cast<cublasMath_t>(precision)), "setting the precision");
    check(cusolverDnCreate(&solver_), "starting");
    check(cusolverDnCreateParams(&solver_options_), "starting");
    check(cusolverDnSetStream(solver_, stream_), "setting the stream");
    check(cudaMalloc(reinterpret_cast<void**>(&found_), most_watches * sizeof(int64_t)), "taking memory");
    check(cudaMallocHost(reinterpret_cast<void**>(&found_host_), most_watches * sizeof(int64_t)), "pinning host memory");
    check(cudaMemsetAsync(found_, nothing_byte, most_watches * sizeof(int64_t), stream_), "clearing memory");
  } catch (...) {
    close();
    throw;
  }
}

Context::~Context() { close(); }

void Context::close() {
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  if (copy_stream_ != nullptr) cudaStreamSynchronize(copy_stream_);
  if (solver_options_ != nullptr) cusolverDnDestroyParams(solver_options_);
  if (solver_ != nullptr) cusolverDnDestroy(solver_);
  if (blas_ != nullptr) cublasDestroy(blas_);
  if (found_ != nullptr) cudaFree(found_);
  if (found_host_ != nullptr) cudaFreeHost(found_host_);
  for (Pinned& buffer : pinned_) {
    if (buffer.data != nullptr) cudaFreeHost(buffer.data);
    if (buffer.copied != nullptr) cudaEventDestroy(buffer.copied);
  }
  if (copied_ != nullptr) cudaEventDestroy(copied_);
  if (reached_ != nullptr) cudaEventDestroy(reached_);
  if (copy_stream_ != nullptr) cudaStreamDestroy(copy_stream_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

std::string Context::description() const {
  int driver = 0, blas = 0;
  cudaDriverGetVersion(&driver);
  cublasGetVersion(blas_, &blas);
  return name_ + ", " + in_mib(memory_) + ", CUDA driver " + std::to_string(driver / 1000) + "." +
         std::to_string(driver % 1000 / 10) + ", cuBLAS " + std::to_string(blas / 10000) + "." +
         std::to_string(blas / 100 % 100);
}

std::shared_ptr<Storage> Context::storage(size_t bytes) {
  return std::make_shared<Memory>(shared_from_this(), std::max<size_t>(bytes, 1));
}

Tensor Context::scratch(DType dtype, int64_t rows, int64_t columns) {
  const auto bytes = static_cast<size_t>(rows * columns) * dtype_size(dtype);
  return {storage(bytes), dtype, rows, columns, columns, 0};
}

std::byte* Context::take(size_t bytes, cudaStream_t stream) {
  void* memory = nullptr;
  cudaError_t status = cudaMallocAsync(&memory, bytes, stream);
  if (status == cudaErrorMemoryAllocation) {
    // What is being freed may be enough, and the pool may hold pieces of other sizes.
    cudaGetLastError();
    check(cudaStreamSynchronize(stream_), "waiting for the device");
    check(cudaStreamSynchronize(copy_stream_), "waiting for the device");
    cudaMemPool_t pool = nullptr;
    check(cudaDeviceGetDefaultMemPool(&pool, 0), "finding the memory pool");
    check(cudaMemPoolTrimTo(pool, 0), "shrinking the memory pool");
    status = cudaMallocAsync(&memory, bytes, stream);
  }
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw_out_of_memory(bytes);
  }
  check(status, "taking memory");
  return static_cast<std::byte*>(memory);
}

Context::Pinned& Context::next_pinned() {
  Pinned& buffer = pinned_[turn_++ % pinned_.size()];
  check(cudaEventSynchronize(buffer.copied), "waiting for a copy");
  return buffer;
}

void Context::to_device(const Tensor& out, const void* host, size_t row_bytes, size_t rows, size_t host_stride) {
  if (row_bytes == 0 || rows == 0) return;
  // Memory that is first touched here belongs to the copy stream from the start; memory that kernels have used must wait
  // for them.
  auto& memory = static_cast<Memory&>(*out.storage);
  if (memory.taken()) {
    check(cudaEventRecord(reached_, stream_), "marking the stream");
    check(cudaStreamWaitEvent(copy_stream_, reached_, 0), "ordering the streams");
  }
  std::byte* device = memory.taken_on(copy_stream_) + out.offset;
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
    check(cudaMemcpyAsync(device, buffer.data, filled, cudaMemcpyHostToDevice, copy_stream_), "copying to the device");
    check(cudaEventRecord(buffer.copied, copy_stream_), "marking the stream");
    device += filled;
  }
  check(cudaEventRecord(copied_, copy_stream_), "marking the stream");
  check(cudaStreamWaitEvent(stream_, copied_, 0), "ordering the streams");
}

void Context::for_pieces(const void* device, size_t bytes, const std::function<void(const std::byte*, size_t)>& write) {
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

void Context::to_host(void* host, const void* device, size_t bytes) {
  auto* out = static_cast<std::byte*>(host);
  for_pieces(device, bytes, [&](const std::byte* data, size_t count) {
    std::memcpy(out, data, count);
    out += count;
  });
}

int64_t* Context::watch(const char* code, std::function<std::string(int64_t)> message) {
  if (static_cast<int64_t>(watches_.size()) == most_watches) synchronize();
  watches_.push_back({code, std::move(message)});
  return found_ + watches_.size() - 1;
}

void Context::synchronize() {
  const std::vector<Watch> watches = std::move(watches_);
  watches_.clear();
  const size_t bytes = watches.size() * sizeof(int64_t);
  if (bytes > 0) {
    check(cudaMemcpyAsync(found_host_, found_, bytes, cudaMemcpyDeviceToHost, stream_), "copying from the device");
    check(cudaMemsetAsync(found_, nothing_byte, bytes, stream_), "clearing memory");
  }
  check(cudaStreamSynchronize(stream_), "waiting for the device");
  for (size_t i = 0; i < watches.size(); ++i)
    if (found_host_[i] != nothing) throw Error(watches[i].code, watches[i].message(found_host_[i]));
}

}  // namespace sparsegpt::cuda
