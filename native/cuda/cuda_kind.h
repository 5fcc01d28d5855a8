// CUDA as a kind of backend: finds and loads the library of the backend, which is a file of its own, and plans for it.
#pragma once

#include "core/library_loader.h"
#include "core/registry.h"

namespace sparsegpt {

const BackendKind& cuda_kind();

constexpr const char* cuda_library_file = "libsparsegpt_cuda.so";
extern const LibraryNeeds cuda_library_needs;

}  // namespace sparsegpt
