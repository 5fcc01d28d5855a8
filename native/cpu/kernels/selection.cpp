// Choosing the smallest scores.
#include "cpu/kernels/lanes.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

int64_t collect_keys(uint32_t* out, const float* scores, int64_t count, uint32_t low, uint32_t high) {
  int64_t found = 0;
  for (int64_t i = 0; i < count; i += width) {
    const int64_t part = count - i < width ? count - i : width;
    const vi keys = as_int(load_first(scores + i, part)) & 0x7fffffff;
    const vi inside = (keys >= static_cast<int32_t>(low)) & (keys <= static_cast<int32_t>(high));
    for (uint32_t hits = lane_bits(inside) & ((1u << part) - 1); hits != 0; hits &= hits - 1)
      out[found++] = static_cast<uint32_t>(keys[__builtin_ctz(hits)]);
  }
  return found;
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
