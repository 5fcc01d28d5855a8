// Finds and loads the CUDA backend at run time, so that programs start where there is no driver or no such library.
#pragma once

#include <memory>
#include <string>

#include "core/cuda_library.h"

namespace sparsegpt {

// libsparsegpt_cuda.so in the folder of the file that holds this code (the addon, or the test program).
std::string cuda_library_path();

// What the library at `path` says of its device. Without a usable library or device, `reason` says why and what to do.
CudaDevice probe_cuda(const std::string& path);

// A backend of its own on the first CUDA device. Throws DEVICE_UNAVAILABLE with the reason, OUT_OF_MEMORY.
std::shared_ptr<Backend> make_cuda_backend(const std::string& path);

}  // namespace sparsegpt
