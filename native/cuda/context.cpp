#include "cuda/context.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/require.h"
#include "core/spill_file.h"

namespace sparsegpt::cuda {

namespace {

// A watch's number before anything is found: every byte is 0x7f, so that a memset makes it.
constexpr int nothing_byte = 0x7f;
constexpr int64_t nothing = 0x7f7f7f7f7f7f7f7f;

struct Gpus {
  std::vector<int> numbers;  // CUDA's
  Availability availability;
};

Gpus find_gpus() {
  Gpus gpus;
  std::string& reason = gpus.availability.reason;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver) {
    reason = "the NVIDIA driver is missing or older than the CUDA version of this build; install a newer driver";
  } else if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
    reason = "there is no NVIDIA GPU, or CUDA_VISIBLE_DEVICES hides it";
  } else if (status != cudaSuccess) {
    reason = std::string("CUDA does not start: ") + cudaGetErrorString(status);
  }
  if (!reason.empty()) return gpus;
  for (int number = 0; number < count; ++number) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, number) != cudaSuccess) {
      reason = "the GPU does not answer";
    } else if (properties.major < 8) {
      reason = std::string(properties.name) + " has compute capability " + std::to_string(properties.major) + "." +
               std::to_string(properties.minor) + "; 8.0 (Ampere) or later is needed";
    } else {
      gpus.numbers.push_back(number);
      gpus.availability.devices.push_back({properties.name, properties.totalGlobalMem});
    }
  }
  if (!gpus.numbers.empty()) reason.clear();
  return gpus;
}

}  // namespace

Availability probe() { return find_gpus().availability; }

// Device memory in the order of a stream. It is taken by the thread that works on the stream and given back by whichever drops
// the last reference; by then every kernel that uses it is in the stream.
class Context::Memory : public Storage {
 public:
  Memory(std::shared_ptr<Context> context, size_t bytes, cudaStream_t stream)
      : context_(std::move(context)), bytes_(bytes), stream_(stream) {}
  ~Memory() override {
    if (memory_ != nullptr || pinned_ != nullptr || load_) cudaSetDevice(context_->device_);
    if (memory_ != nullptr) {
      if (load_) cudaStreamWaitEvent(stream_, load_->event, 0);
      cudaFreeAsync(memory_, stream_);
    }
    if (pinned_ != nullptr) context_->pinned_->give(pinned_, bytes_);
    if (file_) file_->free(place_, bytes_);
  }
  std::byte* data() override {
    if (memory_ == nullptr) {
      context_->select();
      std::byte* memory = context_->take(bytes_, stream_);
      try {
        bring_back(memory);
      } catch (...) {
        cudaFreeAsync(memory, stream_);
        throw;
      }
      memory_ = memory;
    }
    if (load_) {
      context_->loader_->finish(*load_, *context_->lane_);
      load_.reset();
    }
    return memory_;
  }
  size_t size() const override { return bytes_; }
  bool on_host() const override { return false; }

  // The next one to look at the memory waits for the load.
  void expect(std::shared_ptr<Load> load) { load_ = std::move(load); }

  void offload(const std::shared_ptr<SpillFile>& file) override {
    if (memory_ == nullptr) return;
    context_->select();
    data();
    if (file) {
      std::vector<std::byte> bytes(bytes_);
      context_->to_host(bytes.data(), memory_, bytes_);
      place_ = file->write(bytes.data(), bytes_);
      file_ = file;
    } else {
      pinned_ = context_->pinned_->take(bytes_);
      check(cudaMemcpyAsync(pinned_, memory_, bytes_, cudaMemcpyDeviceToHost, stream_), "copying from the device");
    }
    cudaFreeAsync(std::exchange(memory_, nullptr), stream_);
  }

 private:
  void bring_back(std::byte* memory) {
    if (pinned_ != nullptr) {
      check(cudaMemcpyAsync(memory, pinned_, bytes_, cudaMemcpyHostToDevice, stream_), "copying to the device");
      context_->pinned_->give(std::exchange(pinned_, nullptr), bytes_);
    } else if (file_) {
      std::vector<std::byte> bytes(bytes_);
      file_->read(place_, bytes.data(), bytes_);
      context_->lane_->to_device(memory, bytes.data(), bytes_, 1, bytes_);
      std::exchange(file_, nullptr)->free(place_, bytes_);
    }
  }

  std::shared_ptr<Context> context_;
  size_t bytes_;
  cudaStream_t stream_;
  std::byte* memory_ = nullptr;
  std::shared_ptr<Load> load_;
  // Where the bytes are while they are offloaded.
  std::byte* pinned_ = nullptr;
  std::shared_ptr<SpillFile> file_;
  int64_t place_ = 0;
};

Context::Context(int index) {
  const Gpus gpus = find_gpus();
  const auto& [devices, reason] = gpus.availability;
  if (!reason.empty()) throw Error("DEVICE_UNAVAILABLE", reason);
  if (index < 0 || index >= static_cast<int>(devices.size()))
    throw Error("DEVICE_UNAVAILABLE", "there is no GPU " + std::to_string(index) + "; there are " +
                                          std::to_string(devices.size()) + ", counted from 0");
  device_ = gpus.numbers[static_cast<size_t>(index)];
  info_ = devices[static_cast<size_t>(index)];
  one_of_several_ = devices.size() > 1;
  index_ = index;
  try {
    select();
    lane_ = std::make_unique<Lane>();
    loader_ = std::make_unique<Loader>(*this);
    pinned_ = std::make_unique<PinnedPool>(stream());
    // What is freed stays with the process for reuse. Reuse must not make one stream wait for the other, or loads would no
    // longer overlap kernels.
    cudaMemPool_t pool = nullptr;
    check(cudaDeviceGetDefaultMemPool(&pool, device_), "finding the memory pool");
    uint64_t keep = UINT64_MAX;
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "setting up the memory pool");
    int off = 0;
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolReuseAllowInternalDependencies, &off), "setting up the memory pool");
    check(cublasCreate(&blas_), "starting");
    check(cublasSetStream(blas_, stream()), "setting the stream");
    // The default has no TF32; partial sums of half-precision products stay in float32 too.
    constexpr auto precision = CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    check(cublasSetMathMode(blas_, static_cast<cublasMath_t>(precision)), "setting the precision");
    check(cusolverDnCreate(&solver_), "starting");
    check(cusolverDnCreateParams(&solver_options_), "starting");
    check(cusolverDnSetStream(solver_, stream()), "setting the stream");
    check(cudaMalloc(reinterpret_cast<void**>(&found_), most_watches * sizeof(int64_t)), "taking memory");
    check(cudaMallocHost(reinterpret_cast<void**>(&found_host_), most_watches * sizeof(int64_t)), "pinning host memory");
    check(cudaMemsetAsync(found_, nothing_byte, most_watches * sizeof(int64_t), stream()), "clearing memory");
  } catch (...) {
    close();
    throw;
  }
}

Context::~Context() { close(); }

void Context::stop_loading() {
  cudaSetDevice(device_);
  loader_->stop();
}

void Context::close() {
  cudaSetDevice(device_);
  if (loader_) loader_->stop();
  cudaDeviceSynchronize();
  loader_.reset();
  pinned_.reset();
  if (solver_options_ != nullptr) cusolverDnDestroyParams(solver_options_);
  if (solver_ != nullptr) cusolverDnDestroy(solver_);
  if (blas_ != nullptr) cublasDestroy(blas_);
  if (found_ != nullptr) cudaFree(found_);
  if (found_host_ != nullptr) cudaFreeHost(found_host_);
}

std::string Context::description() const {
  int driver = 0, blas = 0;
  cudaDriverGetVersion(&driver);
  cublasGetVersion(blas_, &blas);
  return info_.name + (one_of_several_ ? " (GPU " + std::to_string(index_) + ")" : "") + ", " + in_mib(info_.memory) +
         ", CUDA driver " + std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10) + ", cuBLAS " +
         std::to_string(blas / 10000) + "." + std::to_string(blas / 100 % 100);
}

std::shared_ptr<Storage> Context::storage(size_t bytes) {
  return std::make_shared<Memory>(shared_from_this(), std::max<size_t>(bytes, 1), stream());
}

Tensor Context::scratch(DType dtype, int64_t rows, int64_t columns, cudaStream_t stream) {
  const auto bytes = static_cast<size_t>(rows * columns) * dtype_size(dtype);
  auto memory = std::make_shared<Memory>(shared_from_this(), std::max<size_t>(bytes, 1), stream);
  return {std::move(memory), dtype, rows, columns, columns, 0};
}

std::byte* Context::take(size_t bytes, cudaStream_t stream) {
  void* memory = nullptr;
  cudaError_t status = cudaMallocAsync(&memory, bytes, stream);
  if (status == cudaErrorMemoryAllocation) {
    // What is being freed may be enough, and the pool may hold pieces of other sizes.
    cudaGetLastError();
    check(cudaDeviceSynchronize(), "waiting for the device");
    cudaMemPool_t pool = nullptr;
    check(cudaDeviceGetDefaultMemPool(&pool, device_), "finding the memory pool");
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

void Context::load(const char* operation, const Tensor& out, const Tensor& in, PlaceRows place) {
  auto load = std::make_shared<Load>(operation, in, out.storage, out.bytes(), std::move(place));
  loader_->start(load, stream());
  static_cast<Memory&>(*out.storage).expect(std::move(load));
}

void Context::to_device(const Tensor& out, const void* host) {
  const size_t bytes = byte_size(out);
  lane_->to_device(out.bytes(), host, bytes, 1, bytes);
}

void Context::to_host(void* host, const void* device, size_t bytes) {
  auto* out = static_cast<std::byte*>(host);
  lane_->for_pieces(device, bytes, [&](const std::byte* data, size_t count) {
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
  loader_->check_failure();
  const std::vector<Watch> watches = std::move(watches_);
  watches_.clear();
  const size_t bytes = watches.size() * sizeof(int64_t);
  if (bytes > 0) {
    check(cudaMemcpyAsync(found_host_, found_, bytes, cudaMemcpyDeviceToHost, stream()), "copying from the device");
    check(cudaMemsetAsync(found_, nothing_byte, bytes, stream()), "clearing memory");
  }
  check(cudaStreamSynchronize(stream()), "waiting for the device");
  for (size_t i = 0; i < watches.size(); ++i)
    if (found_host_[i] != nothing) throw Error(watches[i].code, watches[i].message(found_host_[i]));
}

}  // namespace sparsegpt::cuda
