// Kernels on contiguous elements that several operations use.
#pragma once

#include "core/dtype.h"
#include "cpu/kernel.h"

namespace sparsegpt::cpu {

SPARSEGPT_KERNEL(to_float, void, float* out, const void* in, DType dtype, int64_t count);
SPARSEGPT_KERNEL(from_float, void, void* out, DType dtype, const float* in, int64_t count);
SPARSEGPT_KERNEL(add, void, float* x, const float* y, int64_t count);
SPARSEGPT_KERNEL(scale, void, float* x, float factor, int64_t count);
SPARSEGPT_KERNEL(softcap, void, float* x, float cap, int64_t count);  // x = cap * tanh(x / cap)
SPARSEGPT_KERNEL(all_finite, bool, const float* x, int64_t count);

}  // namespace sparsegpt::cpu
