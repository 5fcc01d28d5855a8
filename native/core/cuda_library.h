// What the CUDA backend's shared library (native/cuda) and the program that loads it agree on.
#pragma once

#include <cstdint>
#include <string>

#include "core/backend.h"

namespace sparsegpt {

struct CudaDevice {
  std::string name;
  uint64_t memory = 0;  // bytes
  std::string reason;   // why there is no device; empty when there is one
};

// Returned by the library's only export. The library is a file of its own, so it may be older or newer than the program:
// `interface` comes first and is compared before anything else is touched.
struct CudaLibrary {
  const char* interface;  // SPARSEGPT_INTERFACE as the library was built: a digest of the headers both sides include
  CudaDevice (*probe)();
  Backend* (*create)();  // throws DEVICE_UNAVAILABLE, OUT_OF_MEMORY
};

using CudaEntry = const CudaLibrary* (*)();
constexpr const char* cuda_entry_name = "sparsegpt_cuda_library";

}  // namespace sparsegpt
