// The CPU backend: tensors in main memory, threads from a pool, kernels of the widest instruction set the processor has.
#pragma once

#include <memory>

#include "core/backend.h"

namespace sparsegpt {

// threads: 0 for one per core. Throws DEVICE_UNAVAILABLE when SPARSEGPT_CPU names a level that this processor lacks.
std::unique_ptr<Backend> make_cpu_backend(int threads);

}  // namespace sparsegpt
