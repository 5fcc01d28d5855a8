// What a backend that is a shared library of its own and the program that loads it agree on.
#pragma once

#include "core/backend.h"
#include "core/registry.h"

namespace sparsegpt {

// Returned by the library's only export. The library is a file of its own, so it may be older or newer than the program:
// `interface` comes first and is compared before anything else is touched.
struct BackendLibrary {
  const char* interface;  // SPARSEGPT_INTERFACE as the library was built: a digest of the headers both sides include
  Availability (*probe)();
  Backend* (*create)(int index);  // on one of the devices that probe() lists; throws DEVICE_UNAVAILABLE, OUT_OF_MEMORY
};

using BackendLibraryEntry = const BackendLibrary* (*)();
constexpr const char* backend_library_entry = "sparsegpt_backend_library";

}  // namespace sparsegpt
