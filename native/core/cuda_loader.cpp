#include "core/cuda_loader.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>

#include "core/error.h"

namespace sparsegpt {

namespace {

// The library stays loaded for good: unloading code that has threads and exit handlers is asking for trouble.
const CudaLibrary& load(const std::string& path) {
  static std::mutex mutex;
  static std::map<std::string, const CudaLibrary*> libraries;
  std::lock_guard<std::mutex> lock(mutex);
  const CudaLibrary*& library = libraries[path];
  if (library != nullptr) return *library;
  if (access(path.c_str(), F_OK) != 0)
    throw Error("DEVICE_UNAVAILABLE", "the CUDA backend is not built (there is no " + path +
                                          "); on a machine with the CUDA toolkit: npm run build:cuda");
  // Loading the library brings cuBLAS in, some 200 MB, so a driver is looked for first.
  if (path == cuda_library_path() && dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL) == nullptr)
    throw Error("DEVICE_UNAVAILABLE", "the NVIDIA driver is missing (libcuda.so.1 cannot be loaded)");
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* reason = dlerror();
    throw Error("DEVICE_UNAVAILABLE",
                std::string("the CUDA backend cannot be loaded: ") + (reason != nullptr ? reason : path) +
                    "; it needs cuBLAS and cuSOLVER of the CUDA version it was built with (docs/cuda.md says where they "
                    "are looked for)");
  }
  const auto entry = reinterpret_cast<CudaEntry>(dlsym(handle, cuda_entry_name));
  const CudaLibrary* found = entry != nullptr ? entry() : nullptr;
  if (found == nullptr || std::strcmp(found->interface, SPARSEGPT_INTERFACE) != 0) {
    dlclose(handle);
    throw Error("DEVICE_UNAVAILABLE", path + " belongs to another version of sparsegpt; build it again: npm run build:cuda");
  }
  library = found;
  return *library;
}

}  // namespace

std::string cuda_library_path() {
  Dl_info info{};
  std::string folder = ".";
  if (dladdr(reinterpret_cast<void*>(&cuda_library_path), &info) != 0 && info.dli_fname != nullptr) {
    const std::string file = info.dli_fname;
    const size_t slash = file.rfind('/');
    if (slash != std::string::npos) folder = file.substr(0, slash);
  }
  return folder + "/libsparsegpt_cuda.so";
}

CudaDevice probe_cuda(const std::string& path) {
  try {
    return load(path).probe();
  } catch (const Error& error) {
    CudaDevice none;
    none.reason = error.what();
    return none;
  }
}

std::shared_ptr<Backend> make_cuda_backend(const std::string& path) { return std::shared_ptr<Backend>(load(path).create()); }

}  // namespace sparsegpt
