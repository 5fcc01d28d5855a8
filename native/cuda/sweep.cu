#include "cuda/sweep.h"

#include "cuda/intrinsics.cuh"
#include "cuda/threshold.cuh"

namespace sparsegpt::cuda {

namespace {

constexpr int sweep_warps = 4;
constexpr int sweep_threads = 32 * sweep_warps;
constexpr int weight_pitch = sweep_rows + 1;  // an odd pitch: rows and columns both meet every bank once
constexpr int mask_pitch = sweep_rows + 4;

struct alignas(16) Quad {
  float x, y, z, w;
};

// How the sweep learns what to prune.
enum SweepKind { by_mask = 0, by_any_group = -1 };  // > 0: groups of that many

// Marks the n smallest scores (scale · w / U_jj)² of the group of m columns from `first` on, the leftmost of equal ones first; what is
// marked before scores 0.
template <int m_known>
__device__ inline void mark_group(unsigned& pruned, const float (&w)[sweep_strip], const float* tile, int first, int n,
                                  int m, float scale) {
  float scores[sweep_strip];
#pragma unroll
  for (int a = 0; a < (m_known > 0 ? m_known : m); ++a) {
    const float ratio = w[first + a] * (1.0f / tile[(first + a) * sweep_strip + first + a]) * scale;
    scores[a] = pruned >> (first + a) & 1u ? 0.0f : ratio * ratio;
  }
#pragma unroll
  for (int a = 0; a < (m_known > 0 ? m_known : m); ++a) {
    int rank = 0;
#pragma unroll
    for (int b = 0; b < (m_known > 0 ? m_known : m); ++b) rank += b < a ? scores[b] <= scores[a] : scores[b] < scores[a];
    if (rank < n) pruned |= 1u << (first + a);
  }
}

// The column loop over one strip of one row: prunes and rounds each column and moves its error to the columns right of it in
// the strip. In: w; out: w = q and the errors (w - q) / U_jj. Returns the sum of the
// squares of scale times the errors.
template <int kind>
__device__ inline float sweep_one_strip(float (&w)[sweep_strip], float (&errors)[sweep_strip], unsigned& pruned,
                                        const float* tile, int count, const Sweep& s, float scale, float grid_scale,
                                        float grid_zero) {
  float squares = 0;
#pragma unroll
  for (int i = 0; i < sweep_strip; ++i) {
    errors[i] = 0;
    if (i >= count) continue;
    if constexpr (kind > 0) {
      if (i % kind == 0) mark_group<kind>(pruned, w, tile, i, s.n, kind, scale);
    } else if constexpr (kind == by_any_group) {
      if (i % s.m == 0) mark_group<0>(pruned, w, tile, i, s.n, s.m, scale);
    }
    float u[sweep_strip];
#pragma unroll
    for (int j = i / 4 * 4; j < sweep_strip; j += 4) {
      const Quad quad = *reinterpret_cast<const Quad*>(tile + i * sweep_strip + j);
      u[j] = quad.x;
      u[j + 1] = quad.y;
      u[j + 2] = quad.z;
      u[j + 3] = quad.w;
    }
    const float value = w[i];
    float q = pruned >> i & 1u ? 0.0f : value;
    if (s.steps != nullptr) {
      const float steps = rintf(q / grid_scale) + grid_zero;
      q = grid_scale * (fminf(fmaxf(steps, 0.0f), s.largest_code) - grid_zero);
    }
    const float error = (value - q) * (1.0f / u[i]);
    w[i] = q;
    errors[i] = error;
    const float scaled = error * scale;
    squares += scaled * scaled;
#pragma unroll
    for (int j = i + 1; j < sweep_strip; ++j) w[j] -= error * u[j];
  }
  return squares;
}

// A block of threads takes sweep_rows rows, one to a lane, and holds their part of the weight and the packed factor in shared
// memory. All its warps go through a strip together, each for itself, so that the errors need no exchange; then each moves them
// to every fourth of the columns that follow.
template <int kind>
__global__ void __launch_bounds__(sweep_threads) sweep_kernel(Sweep s, int packed_floats) {
  auto* factor = reinterpret_cast<float*>(dynamic_shared());
  float* weights = factor + packed_floats;  // [columns][weight_pitch]
  auto* masks = reinterpret_cast<uint8_t*>(weights + sweep_columns * weight_pitch);  // [columns][mask_pitch]
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first_row = blockIdx.x * int64_t{sweep_rows};
  const int rows = static_cast<int>(min(int64_t{sweep_rows}, s.rows - first_row));
  const int size = s.size;

  for (int e = static_cast<int>(threadIdx.x); e < packed_floats / 4; e += sweep_threads)
    reinterpret_cast<Quad*>(factor)[e] = reinterpret_cast<const Quad*>(s.packed)[e];

  const bool by_threshold = kind == by_mask && s.chosen == nullptr;
  const Threshold threshold = by_threshold ? s.state->threshold : Threshold{};
  const unsigned long long quota = by_threshold ? s.quota[blockIdx.x] : 0;
  // Only a choice by threshold looks at a weight more than once.
  const bool look_for_zeros = kind != by_mask || *s.any_zeros != 0;
  const auto is_zero = [&](int r, int j) { return look_for_zeros && s.mask[(first_row + r) * s.stride + j] != 0; };
  const auto key = [&](int r, int j) {
    if (is_zero(r, j)) return key_of(0.0f);
    const float ratio = weights[j * weight_pitch + r] / s.diagonal[j];
    return key_of(ratio * ratio);
  };
  for (int e = static_cast<int>(threadIdx.x); e < sweep_rows * size; e += sweep_threads) {
    const int r = e / size, j = e % size;
    weights[j * weight_pitch + r] = r < rows ? s.weight[(first_row + r) * s.stride + j] : 0.0f;
    bool chosen = r < rows && is_zero(r, j);
    if (kind == by_mask && r < rows && !chosen) {
      if (by_threshold) {
        const uint32_t k = key(r, j);
        chosen = k < threshold.key || (k == threshold.key && quota == all_equal);
      } else {
        chosen = s.chosen[(first_row + r) * s.chosen_stride + j] != 0;
      }
    }
    masks[j * mask_pitch + r] = chosen;
  }
  if (quota != 0 && quota != all_equal) {
    take_ties(
        static_cast<unsigned>(rows * size), quota,
        [&](unsigned e) { return key(static_cast<int>(e) / size, static_cast<int>(e) % size) == threshold.key; },
        [&](unsigned e) { masks[static_cast<int>(e) % size * mask_pitch + static_cast<int>(e) / size] = 1; });
  }

  const bool rounds = s.steps != nullptr && lane < rows;
  const float scale = *s.scale;
  double loss = 0;
  float w[sweep_strip], errors[sweep_strip];
  const float* strip = factor;
  for (int s0 = 0; s0 < size; s0 += s.strip) {
    const int s1 = min(s0 + s.strip, size);
    __syncthreads();  // this strip's columns are up to date
    unsigned pruned = 0;
#pragma unroll
    for (int i = 0; i < sweep_strip; ++i) {
      const bool inside = s0 + i < s1;
      w[i] = inside ? weights[(s0 + i) * weight_pitch + lane] : 0.0f;
      if (inside && masks[(s0 + i) * mask_pitch + lane]) pruned |= 1u << i;
    }
    const int64_t grid = rounds ? (first_row + lane) * s.groups + (s.first_column + s0) / s.group_size : 0;
    const float grid_scale = rounds ? s.steps[grid] : 1.0f, grid_zero = rounds ? s.zeros[grid] : 0.0f;
    loss += sweep_one_strip<kind>(w, errors, pruned, strip, s1 - s0, s, scale, grid_scale, grid_zero);

    const float* above = strip + sweep_strip * sweep_strip;
#pragma unroll 2
    for (int j = s1 + warp; j < size; j += sweep_warps) {
      const auto* column = reinterpret_cast<const Quad*>(above + (j - s1) * sweep_strip);
      float sum = 0;
#pragma unroll
      for (int i = 0; i < sweep_strip; i += 4) {
        const Quad u = column[i / 4];
        sum += errors[i] * u.x;
        sum += errors[i + 1] * u.y;
        sum += errors[i + 2] * u.z;
        sum += errors[i + 3] * u.w;
      }
      weights[j * weight_pitch + lane] -= sum;
    }
    __syncthreads();  // every warp has read the strip
    if (warp == 0) {
#pragma unroll
      for (int i = 0; i < sweep_strip; ++i) {
        if (s0 + i >= s1) continue;
        weights[(s0 + i) * weight_pitch + lane] = w[i];
        if (kind != by_mask) masks[(s0 + i) * mask_pitch + lane] = pruned >> i & 1u;
      }
    }
    strip += strip_size(size, s0, s.strip);
  }
  __syncthreads();

  for (int e = static_cast<int>(threadIdx.x); e < rows * size; e += sweep_threads) {
    const int r = e / size, j = e % size;
    const int64_t at = (first_row + r) * s.stride + j;
    const float q = weights[j * weight_pitch + r];
    s.weight[at] = q;
    s.error[at] -= q;
    s.mask[at] = masks[j * mask_pitch + r];
  }
  if (warp == 0) {
    for (int step = 16; step > 0; step /= 2) loss += __shfl_xor_sync(whole_warp, loss, step);
    if (lane == 0) s.losses[blockIdx.x] += loss;
  }
}

}  // namespace

void sweep(cudaStream_t stream, const Sweep& s) {
  const int floats = packed_size(s.size, s.strip);
  const size_t shared = static_cast<size_t>(floats) * sizeof(float) +
                        sweep_columns * (weight_pitch * sizeof(float) + mask_pitch * sizeof(uint8_t));
  const dim3 grid(static_cast<unsigned>((s.rows + sweep_rows - 1) / sweep_rows));
  const auto run = [&](auto kernel) {
    launch("prune_sparsegpt", kernel, grid, dim3(sweep_threads), shared, stream, s, floats);
  };
  if (s.m == 0) {
    run(sweep_kernel<by_mask>);
  } else if (s.m == 2) {
    run(sweep_kernel<2>);
  } else if (s.m == 4) {
    run(sweep_kernel<4>);
  } else if (s.m == 8) {
    run(sweep_kernel<8>);
  } else {
    run(sweep_kernel<by_any_group>);
  }
}

}  // namespace sparsegpt::cuda
