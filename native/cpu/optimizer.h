// What the kernel of Adam takes.
#pragma once

#include "cpu/kernel.h"

namespace sparsegpt::cpu {

// The settings of a step; the scales undo the bias of the running means.
struct AdamRates {
  float rate, beta1, beta2, epsilon, decay, first_scale, second_scale;
  bool keep_zeros;
};

SPARSEGPT_KERNEL(adam, void, float* weight, float* first, float* second, const float* gradient, int64_t count,
                 const AdamRates& rates);

}  // namespace sparsegpt::cpu
