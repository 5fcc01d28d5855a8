// Tensors in a device's memory, and such that only have a shape.
#include <memory>

#include "addon/addon.h"
#include "addon/device_handle.h"
#include "addon/tensor_handle.h"

namespace sparsegpt::addon {

namespace {

// (device, dtype, rows, columns) => tensor, uninitialised
Napi::Value allocate(const Info& info) {
  Tensor tensor = read_shape(info, 1);
  const size_t bytes = byte_size(tensor);
  tensor.storage = DeviceHandle::from(info[0]).device().backend().allocate(bytes);
  return wrap(info.Env(), std::move(tensor));
}

// (tensor, firstRow, rows, firstColumn, columns) => tensor that shares the storage
Napi::Value view(const Info& info) {
  const Tensor rows = read_tensor(info[0]).row_range(read<int64_t>(info[1]), read<int64_t>(info[2]));
  return wrap(info.Env(), rows.column_range(read<int64_t>(info[3]), read<int64_t>(info[4])));
}

// (tensor, rows, columns) => tensor that shares the storage
Napi::Value reshape(const Info& info) {
  return wrap(info.Env(), read_tensor(info[0]).reshaped(read<int64_t>(info[1]), read<int64_t>(info[2])));
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

// (device, tensor, spillFile | undefined): moves the tensor's storage out of the device's memory until it is next used
void offload(const Info& info) {
  std::shared_ptr<SpillFile> file;
  if (info[2].IsExternal()) file = *info[2].As<Napi::External<std::shared_ptr<SpillFile>>>().Data();
  const Tensor tensor = *info[1].As<Napi::External<Tensor>>().Data();
  if (!tensor) return;  // it has been disposed of, so there is nothing to move
  DeviceHandle::from(info[0]).device().enqueue("offload", [tensor, file](Backend&) { tensor.storage->offload(file); });
}

// Has a size but no memory, for planning.
class ShapeStorage : public Storage {
 public:
  ShapeStorage(size_t bytes, bool mapped) : bytes_(bytes), mapped_(mapped) {}
  std::byte* data() override { throw Error("INTERNAL", "a tensor of a plan has no elements"); }
  size_t size() const override { return bytes_; }
  bool read_only() const override { return mapped_; }
  // Else it may be a GPU's; the scratch models ask.
  bool on_host() const override { return mapped_; }

 private:
  size_t bytes_;
  bool mapped_;
};

// (dtype, rows, columns, mapped) => tensor without elements, as of a mapped file or as in a device's memory
Napi::Value shape_tensor(const Info& info) {
  Tensor tensor = read_shape(info, 0);
  tensor.storage = std::make_shared<ShapeStorage>(byte_size(tensor), read<bool>(info[3]));
  return wrap(info.Env(), std::move(tensor));
}

}  // namespace

void export_tensors(Napi::Object exports) {
  export_function(exports, "allocate", allocate);
  export_function(exports, "view", view);
  export_function(exports, "reshape", reshape);
  export_function(exports, "release", release);
  export_function(exports, "upload", upload);
  export_function(exports, "download", download);
  export_function(exports, "offload", offload);
  export_function(exports, "shapeTensor", shape_tensor);
}

}  // namespace sparsegpt::addon
