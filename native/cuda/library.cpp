// The library's only export.
#include "core/cuda_library.h"
#include "cuda/context.h"
#include "cuda/cuda_backend.h"

extern "C" __attribute__((visibility("default"))) const sparsegpt::CudaLibrary* sparsegpt_cuda_library() {
  static const sparsegpt::CudaLibrary library{SPARSEGPT_INTERFACE, sparsegpt::cuda::probe, sparsegpt::cuda::create_backend};
  return &library;
}
