// Reading memory and nothing else.
#include "cpu/kernels/vec.h"
#include "cpu/peak.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

// In four chains, which the loads of one do not wait for.
uint32_t read_vectors(const uint32_t* p, int64_t count) {
  constexpr int64_t chains = 4, step = chains * width;
  vu sums[chains] = {};
  for (int64_t i = 0; i + step <= count; i += step) {
    for (int64_t c = 0; c < chains; ++c) sums[c] ^= *reinterpret_cast<const vu*>(p + i + c * width);
    __builtin_prefetch(p + i + 1024);
    if (width == 16) __builtin_prefetch(p + i + 1040), __builtin_prefetch(p + i + 1056), __builtin_prefetch(p + i + 1072);
  }
  uint32_t lanes[width];
  const vu sum = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  memcpy(lanes, &sum, sizeof lanes);
  uint32_t result = 0;
  for (uint32_t lane : lanes) result ^= lane;
  return result;
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
