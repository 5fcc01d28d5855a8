// The binding: one JavaScript function per Backend operation, and a few for devices, tensors and files.
// Its TypeScript mirror is src/native/addon.ts.
#include <napi.h>

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>

#include "addon/convert.h"
#include "addon/device_handle.h"
#include "core/cuda_loader.h"
#include "core/mapped_file.h"
#include "core/spill_file.h"
#include "cpu/cpu_backend.h"
#include "cpu/dispatch.h"
#include "cpu/kernels/kernels.h"
#include "cpu/peak.h"

namespace sparsegpt::addon {

namespace {

using Info = Napi::CallbackInfo;

// Errors of the native code become JavaScript errors with their code.
template <typename Body>
auto guarded(const Info& info, const Body& body) {
  try {
    return body();
  } catch (const Error& error) {
    throw to_js(info.Env(), error);
  } catch (const std::bad_alloc&) {
    throw to_js(info.Env(), Error("OUT_OF_MEMORY", "not enough memory"));
  }
}

// --- Backend operations: (device, ...arguments) => undefined, enqueued ------------------------------------------------

template <typename... Parameters, size_t... Index>
auto read_arguments(const Info& info, std::index_sequence<Index...>) {
  return std::tuple<std::decay_t<Parameters>...>{read<std::decay_t<Parameters>>(info[Index + 1])...};
}

template <typename... Parameters>
void enqueue(const Info& info, void (Backend::*method)(Parameters...), const char* name) {
  auto arguments = read_arguments<Parameters...>(info, std::index_sequence_for<Parameters...>());
  DeviceHandle::from(info[0]).device().enqueue(name, [method, arguments = std::move(arguments)](Backend& backend) {
    std::apply([&](const auto&... argument) { (backend.*method)(argument...); }, arguments);
  });
}

template <auto Method>
void export_operation(Napi::Object exports, const char* name) {
  exports.Set(name, Napi::Function::New(exports.Env(), [name](const Info& info) { enqueue(info, Method, name); }, name));
}

// --- devices ------------------------------------------------------------------------------------------------------------

// Devices with the same settings share a backend: its threads and its memory.
std::shared_ptr<Backend> cpu_backend(int threads) {
  static std::mutex mutex;
  static std::map<int, std::weak_ptr<Backend>> backends;
  std::lock_guard<std::mutex> lock(mutex);
  auto backend = backends[threads].lock();
  if (!backend) {
    backend = make_cpu_backend(threads);
    backends[threads] = backend;
  }
  return backend;
}

Napi::Value wrap_device(Napi::Env env, std::shared_ptr<Backend> backend) {
  auto handle = std::make_unique<DeviceHandle>(env, std::move(backend));
  return Napi::External<DeviceHandle>::New(env, handle.release(), [](Napi::Env, DeviceHandle* dead) { delete dead; });
}

Napi::Value open_device(const Info& info) {
  return guarded(info, [&]() -> Napi::Value { return wrap_device(info.Env(), cpu_backend(read<int>(info[0]))); });
}

Napi::Value open_cuda_device(const Info& info) {
  return guarded(info, [&]() -> Napi::Value { return wrap_device(info.Env(), make_cuda_backend(cuda_library_path())); });
}

// () => { name, memory, reason }; reason is empty when there is a device
Napi::Value probe_cuda_device(const Info& info) {
  const CudaDevice device = probe_cuda(cuda_library_path());
  auto result = Napi::Object::New(info.Env());
  result.Set("name", device.name);
  result.Set("memory", static_cast<double>(device.memory));
  result.Set("reason", device.reason);
  return result;
}

void close_device(const Info& info) { DeviceHandle::from(info[0]).close(); }

Napi::Value describe_device(const Info& info) {
  return Napi::String::New(info.Env(), DeviceHandle::from(info[0]).device().backend().description());
}

Napi::Value cpu_levels(const Info& info) {
  auto names = Napi::Array::New(info.Env());
  for (const auto* level : cpu::available_kernels()) names[names.Length()] = Napi::String::New(info.Env(), level->name);
  return names;
}

// (device) => { operation: seconds }; see Device::profile
Napi::Value profile(const Info& info) {
  auto seconds = Napi::Object::New(info.Env());
  for (const auto& [operation, spent] : DeviceHandle::from(info[0]).device().profile()) seconds.Set(operation, spent);
  return seconds;
}

// (dtype, threads) => FLOP/s of multiply-adds in registers; takes some ten milliseconds
Napi::Value cpu_peak(const Info& info) {
  return guarded(info, [&]() -> Napi::Value {
    ThreadPool pool(thread_count(read<int>(info[1])));
    cpu::multiply_adds(pool, read_dtype(info[0]));  // wakes the threads
    const auto start = std::chrono::steady_clock::now();
    const double flop = cpu::multiply_adds(pool, read_dtype(info[0]));
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    return Napi::Number::New(info.Env(), flop / seconds.count());
  });
}

Napi::Value synchronize(const Info& info) { return DeviceHandle::from(info[0]).synchronize(info.Env()); }

// --- tensors ------------------------------------------------------------------------------------------------------------

Napi::Value wrap(Napi::Env env, Tensor tensor) {
  return Napi::External<Tensor>::New(env, new Tensor(std::move(tensor)), [](Napi::Env, Tensor* dead) { delete dead; });
}

Tensor shaped(const Info& info, size_t dtype_index) {
  Tensor tensor;
  tensor.dtype = read_dtype(info[dtype_index]);
  tensor.rows = read<int64_t>(info[dtype_index + 1]);
  tensor.columns = tensor.stride = read<int64_t>(info[dtype_index + 2]);
  return tensor;
}

// (device, dtype, rows, columns) => tensor, uninitialised
Napi::Value allocate(const Info& info) {
  Tensor tensor = shaped(info, 1);
  const size_t bytes = static_cast<size_t>(tensor.size()) * dtype_size(tensor.dtype);
  tensor.storage = DeviceHandle::from(info[0]).device().backend().allocate(bytes);
  return wrap(info.Env(), std::move(tensor));
}

// (tensor, firstRow, rows, firstColumn, columns) => tensor that shares the storage
Napi::Value view(const Info& info) {
  return guarded(info, [&] {
    const Tensor rows = read_tensor(info[0]).row_range(read<int64_t>(info[1]), read<int64_t>(info[2]));
    return wrap(info.Env(), rows.column_range(read<int64_t>(info[3]), read<int64_t>(info[4])));
  });
}

// (tensor, rows, columns) => tensor that shares the storage
Napi::Value reshape(const Info& info) {
  return guarded(
      info, [&] { return wrap(info.Env(), read_tensor(info[0]).reshaped(read<int64_t>(info[1]), read<int64_t>(info[2]))); });
}

// The storage dies with its last user: enqueued operations keep it alive.
void release(const Info& info) { info[0].As<Napi::External<Tensor>>().Data()->storage.reset(); }

// (device, tensor, typedArray): copies on the queue; the array must not change until then
void upload(const Info& info) {
  const auto array = info[2].As<Napi::TypedArray>();
  const auto* host = static_cast<const std::byte*>(array.ArrayBuffer().Data()) + array.ByteOffset();
  DeviceHandle::from(info[0]).enqueue_with(
      array, "upload", [tensor = read_tensor(info[1]), host](Backend& backend) { backend.upload(tensor, host); });
}

// (device, tensor, typedArray) => promise
Napi::Value download(const Info& info) {
  const auto array = info[2].As<Napi::TypedArray>();
  auto* host = static_cast<std::byte*>(array.ArrayBuffer().Data()) + array.ByteOffset();
  auto& device = DeviceHandle::from(info[0]);
  device.enqueue_with(array, "download",
                      [tensor = read_tensor(info[1]), host](Backend& backend) { backend.download(host, tensor); });
  return device.synchronize(info.Env());
}

// --- files --------------------------------------------------------------------------------------------------------------

class FileStorage : public Storage {
 public:
  explicit FileStorage(std::shared_ptr<MappedFile> file) : file_(std::move(file)) {}
  std::byte* data() override { return const_cast<std::byte*>(file_->data()); }
  size_t size() const override { return file_->size(); }
  bool read_only() const override { return true; }
  void release_pages(size_t offset, size_t bytes) override { file_->release_pages(offset, bytes); }

 private:
  std::shared_ptr<MappedFile> file_;
};

using File = std::shared_ptr<MappedFile>;

Napi::Value map_file(const Info& info) {
  return guarded(info, [&]() -> Napi::Value {
    return Napi::External<File>::New(info.Env(), new File(MappedFile::open(info[0].ToString())),
                                     [](Napi::Env, File* dead) { delete dead; });
  });
}

// (file, byteOffset, dtype, rows, columns) => tensor over the mapping
Napi::Value map_tensor(const Info& info) {
  return guarded(info, [&] {
    const File& file = *info[0].As<Napi::External<File>>().Data();
    Tensor tensor = shaped(info, 2);
    tensor.offset = read<int64_t>(info[1]);
    const auto bytes = static_cast<uint64_t>(tensor.size()) * dtype_size(tensor.dtype);
    if (tensor.offset < 0 || static_cast<uint64_t>(tensor.offset) > file->size() ||
        bytes > file->size() - static_cast<uint64_t>(tensor.offset))
      throw Error("INVALID_CHECKPOINT", file->path() + ": a tensor reaches beyond the end of the file");
    tensor.storage = std::make_shared<FileStorage>(file);
    return wrap(info.Env(), std::move(tensor));
  });
}

// (device, tensor): gives the mapped pages back once everything enqueued before has run
void release_pages(const Info& info) {
  DeviceHandle::from(info[0]).device().enqueue("releasePages", [tensor = read_tensor(info[1])](Backend&) {
    const auto bytes = static_cast<size_t>(tensor.size()) * dtype_size(tensor.dtype);
    tensor.storage->release_pages(static_cast<size_t>(tensor.offset), bytes);
  });
}

// (folder) => a file for offload
Napi::Value create_spill_file(const Info& info) {
  return guarded(info, [&]() -> Napi::Value {
    using Spill = std::shared_ptr<SpillFile>;
    return Napi::External<Spill>::New(info.Env(), new Spill(SpillFile::create(info[0].ToString())),
                                      [](Napi::Env, Spill* dead) { delete dead; });
  });
}

// (device, tensor, spillFile | undefined): moves the tensor's storage out of the device's memory until it is next used
void offload(const Info& info) {
  std::shared_ptr<SpillFile> file;
  if (info[2].IsExternal()) file = *info[2].As<Napi::External<std::shared_ptr<SpillFile>>>().Data();
  const Tensor tensor = *info[1].As<Napi::External<Tensor>>().Data();
  if (!tensor) return;  // it has been disposed of, so there is nothing to move
  DeviceHandle::from(info[0]).device().enqueue("offload", [tensor, file](Backend&) { tensor.storage->offload(file); });
}

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  exports.Set("openDevice", Napi::Function::New(env, open_device));
  exports.Set("openCudaDevice", Napi::Function::New(env, open_cuda_device));
  exports.Set("probeCudaDevice", Napi::Function::New(env, probe_cuda_device));
  exports.Set("closeDevice", Napi::Function::New(env, close_device));
  exports.Set("describeDevice", Napi::Function::New(env, describe_device));
  exports.Set("cpuLevels", Napi::Function::New(env, cpu_levels));
  exports.Set("cpuPeak", Napi::Function::New(env, cpu_peak));
  exports.Set("profile", Napi::Function::New(env, profile));
  exports.Set("synchronize", Napi::Function::New(env, synchronize));
  exports.Set("allocate", Napi::Function::New(env, allocate));
  exports.Set("view", Napi::Function::New(env, view));
  exports.Set("reshape", Napi::Function::New(env, reshape));
  exports.Set("release", Napi::Function::New(env, release));
  exports.Set("upload", Napi::Function::New(env, upload));
  exports.Set("download", Napi::Function::New(env, download));
  exports.Set("mapFile", Napi::Function::New(env, map_file));
  exports.Set("mapTensor", Napi::Function::New(env, map_tensor));
  exports.Set("createSpillFile", Napi::Function::New(env, create_spill_file));
  exports.Set("offload", Napi::Function::New(env, offload));
  exports.Set("releasePages", Napi::Function::New(env, release_pages));

  export_operation<&Backend::cast>(exports, "cast");
  export_operation<&Backend::transpose>(exports, "transpose");
  export_operation<&Backend::fill>(exports, "fill");
  export_operation<&Backend::write_file>(exports, "writeFile");
  export_operation<&Backend::embedding>(exports, "embedding");
  export_operation<&Backend::linear>(exports, "linear");
  export_operation<&Backend::layer_norm>(exports, "layerNorm");
  export_operation<&Backend::rms_norm>(exports, "rmsNorm");
  export_operation<&Backend::rotary>(exports, "rotary");
  export_operation<&Backend::attention>(exports, "attention");
  export_operation<&Backend::activation>(exports, "activation");
  export_operation<&Backend::gate>(exports, "gate");
  export_operation<&Backend::add>(exports, "add");
  export_operation<&Backend::scale>(exports, "scale");
  export_operation<&Backend::softcap>(exports, "softcap");
  export_operation<&Backend::take_columns>(exports, "takeColumns");
  export_operation<&Backend::scatter_add>(exports, "scatterAdd");
  export_operation<&Backend::cross_entropy>(exports, "crossEntropy");
  export_operation<&Backend::accumulate_gram>(exports, "accumulateGram");
  export_operation<&Backend::accumulate_squares>(exports, "accumulateSquares");
  export_operation<&Backend::factor_hessian>(exports, "factorHessian");
  export_operation<&Backend::prune_sparsegpt>(exports, "pruneSparsegpt");
  export_operation<&Backend::prune_magnitude>(exports, "pruneMagnitude");
  export_operation<&Backend::prune_wanda>(exports, "pruneWanda");
  export_operation<&Backend::count_zeros>(exports, "countZeros");
  return exports;
}

}  // namespace

}  // namespace sparsegpt::addon

static Napi::Object init(Napi::Env env, Napi::Object exports) { return sparsegpt::addon::initialise(env, exports); }
NODE_API_MODULE(sparsegpt, init)
