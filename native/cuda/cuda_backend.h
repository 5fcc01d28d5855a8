// The CUDA backend; see Backend.
#pragma once

#include "core/backend.h"

namespace sparsegpt::cuda {

// Throws DEVICE_UNAVAILABLE, OUT_OF_MEMORY.
Backend* create_backend();

}  // namespace sparsegpt::cuda
