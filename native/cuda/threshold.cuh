// How a score's place among others is told: shared by the kernels that choose and the sweep.
#pragma once

#include "cuda/element.cuh"
#include "cuda/select.h"

namespace sparsegpt::cuda {

// The bits of a non-negative float order as the float does.
__device__ inline uint32_t key_of(float score) { return __float_as_uint(score) & 0x7fffffffu; }

__device__ inline float score_of(const Ranking& s, int64_t row, int64_t column) {
  const float w = s.weight[row * s.stride + column];
  if (s.kind == Ranking::magnitude) return fabsf(w);
  if (s.zeros != nullptr && s.zeros[row * s.zeros_stride + column]) return 0;
  const float ratio = w / s.factor[column];
  return ratio * ratio;
}

// Calls take(e) for the first `quota` elements e of [0, count) with equals(e), in order of e. Element e belongs to thread
// e mod blockDim.x, which alone looks at it, so a loop before that hands them out alike needs no barrier. All threads of a
// one-dimensional block of whole warps take part.
template <typename Equals, typename Take>
__device__ inline void take_ties(unsigned count, unsigned long long quota, const Equals& equals, const Take& take) {
  __shared__ unsigned found[32];  // of each warp in this round
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  unsigned long long before = 0;
  for (unsigned base = 0; base < count && before < quota; base += blockDim.x) {
    const unsigned e = base + threadIdx.x;
    const bool equal = e < count && equals(e);
    const unsigned ballot = __ballot_sync(whole_warp, equal);
    if (lane == 0) found[warp] = static_cast<unsigned>(__popc(ballot));
    __syncthreads();
    unsigned long long rank = before + static_cast<unsigned>(__popc(ballot & ((1u << lane) - 1)));
    for (unsigned w = 0; w < warps; ++w) {
      if (w < warp) rank += found[w];
      before += found[w];
    }
    if (equal && rank < quota) take(e);
    __syncthreads();
  }
}

}  // namespace sparsegpt::cuda
