#include "cuda/cuda_kind.h"

#include <dlfcn.h>

#include "core/error.h"
#include "cuda/sizes.h"

namespace sparsegpt {

namespace {

// Loading the library brings cuBLAS in, some 200 MB, so a driver is looked for first.
void require_driver() {
  if (dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL) == nullptr)
    throw Error("DEVICE_UNAVAILABLE", "the NVIDIA driver is missing (libcuda.so.1 cannot be loaded)");
}

class CudaScratch : public ScratchModel {
 public:
#define SPARSEGPT_SCRATCH(Operation) \
  size_t bytes(const Operation& operation) const override { return cuda::scratch_bytes(operation); }
  SPARSEGPT_OPERATIONS(SPARSEGPT_SCRATCH)
#undef SPARSEGPT_SCRATCH
};

class CudaKind : public BackendKind {
 public:
  const char* name() const override { return "cuda"; }
  bool in_host_memory() const override { return false; }
  bool loads_ahead() const override { return true; }
  Availability probe() const override {
    try {
      return library().probe();
    } catch (const Error& error) {
      return {{}, error.what()};
    }
  }
  std::shared_ptr<Backend> open(int index, int) const override { return std::shared_ptr<Backend>(library().create(index)); }
  const ScratchModel& scratch() const override { return scratch_; }

 private:
  static const BackendLibrary& library() {
    return load_backend_library(find_library(cuda_library_file), cuda_library_needs);
  }
  CudaScratch scratch_;
};

}  // namespace

const LibraryNeeds cuda_library_needs{
    "the CUDA backend", "cuda", "on a machine with the CUDA toolkit",
    "it needs cuBLAS and cuSOLVER of the CUDA version it was built with (docs/cuda.md says where they are looked for)",
    require_driver};

const BackendKind& cuda_kind() {
  static const CudaKind kind;
  return kind;
}

}  // namespace sparsegpt
