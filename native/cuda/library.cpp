// The library's only export.
#include "core/backend_library.h"
#include "cuda/context.h"
#include "cuda/cuda_backend.h"

namespace {

sparsegpt::Backend* create(int index) { return new sparsegpt::cuda::CudaBackend(index); }

}  // namespace

extern "C" __attribute__((visibility("default"))) const sparsegpt::BackendLibrary* sparsegpt_backend_library() {
  static const sparsegpt::BackendLibrary library{SPARSEGPT_INTERFACE, sparsegpt::cuda::probe, create};
  return &library;
}
