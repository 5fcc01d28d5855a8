// The activation functions in float64.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/operations.h"

namespace sparsegpt::test {

constexpr Activation all_activations[] = {Activation::relu,          Activation::gelu,  Activation::gelu_tanh,
                                          Activation::silu,          Activation::relu2, Activation::clamped_swish,
                                          Activation::clamped_linear};

inline double activate(double x, Activation kind) {
  switch (kind) {
    case Activation::relu: return x > 0 ? x : 0;
    case Activation::gelu: return x / 2 * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh: return x / 2 * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::relu2: return x > 0 ? x * x : 0;
    case Activation::clamped_swish: return std::min(x, 7.0) / (1 + std::exp(-1.702 * std::min(x, 7.0)));
    case Activation::clamped_linear: return 1 + std::max(-7.0, std::min(x, 7.0));
  }
  return NAN;
}

}  // namespace sparsegpt::test
