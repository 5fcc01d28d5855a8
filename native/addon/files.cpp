// Mapped files, spill files, and the paths of outputs.
#include <memory>
#include <utility>

#include "addon/addon.h"
#include "addon/convert.h"
#include "addon/device_handle.h"
#include "addon/tensor_handle.h"
#include "core/mapped_file.h"
#include "core/output_paths.h"
#include "core/spill_file.h"

namespace sparsegpt::addon {

namespace {

class FileStorage : public Storage {
 public:
  explicit FileStorage(std::shared_ptr<MappedFile> file) : file_(std::move(file)) {}
  std::byte* data() override { return const_cast<std::byte*>(file_->data()); }
  size_t size() const override { return file_->size(); }
  bool read_only() const override { return true; }
  void require_intact() const override { file_->require_intact(); }
  void release_pages(size_t offset, size_t bytes) override {
    file_->require_intact();
    file_->release_pages(offset, bytes);
  }

 private:
  std::shared_ptr<MappedFile> file_;
};

using File = std::shared_ptr<MappedFile>;

Napi::Value map_file(const Info& info) {
  return Napi::External<File>::New(info.Env(), new File(MappedFile::open(info[0].ToString())),
                                   [](Napi::Env, File* dead) { delete dead; });
}

// (file, byteOffset, dtype, rows, columns) => tensor over the mapping
Napi::Value map_tensor(const Info& info) {
  const File& file = *info[0].As<Napi::External<File>>().Data();
  Tensor tensor = read_shape(info, 2);
  tensor.offset = read<int64_t>(info[1]);
  const auto bytes = uint64_t{byte_size(tensor)};
  if (tensor.offset < 0 || static_cast<uint64_t>(tensor.offset) > file->size() ||
      bytes > file->size() - static_cast<uint64_t>(tensor.offset))
    throw Error("INVALID_CHECKPOINT", file->path() + ": a tensor reaches beyond the end of the file");
  tensor.storage = std::make_shared<FileStorage>(file);
  return wrap(info.Env(), std::move(tensor));
}

// (device, tensor): gives the mapped pages back once everything enqueued before has run
void release_pages(const Info& info) {
  DeviceHandle::from(info[0]).device().enqueue("releasePages", [tensor = read_tensor(info[1])](Backend&) {
    tensor.storage->release_pages(static_cast<size_t>(tensor.offset), byte_size(tensor));
  });
}

// (folder) => a file for offload
Napi::Value create_spill_file(const Info& info) {
  using Spill = std::shared_ptr<SpillFile>;
  return Napi::External<Spill>::New(info.Env(), new Spill(SpillFile::create(info[0].ToString())),
                                    [](Napi::Env, Spill* dead) { delete dead; });
}

// (path, path) => whether they have changed places
Napi::Value exchange(const Info& info) {
  return Napi::Boolean::New(info.Env(), exchange_paths(read<std::string>(info[0]), read<std::string>(info[1])));
}

}  // namespace

void export_files(Napi::Object exports) {
  export_function(exports, "mapFile", map_file);
  export_function(exports, "mapTensor", map_tensor);
  export_function(exports, "releasePages", release_pages);
  export_function(exports, "createSpillFile", create_spill_file);
  export_function(exports, "exchangePaths", exchange);
}

}  // namespace sparsegpt::addon
