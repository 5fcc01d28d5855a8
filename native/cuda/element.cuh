// Elements of tensors of any type as float32, and sums over the threads of a block.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/intrinsics.cuh"
#include "cuda/kernels.h"

namespace sparsegpt::cuda {

template <typename T>
__device__ inline T* row_of(const View& v, int64_t row) {
  return static_cast<T*>(v.data) + row * v.stride;
}

// The type is the same for all threads, so the branch costs nothing next to the access.
__device__ inline float read(const View& v, int64_t row, int64_t column) {
  const int64_t at = row * v.stride + column;
  switch (v.dtype) {
    case DType::bf16: return __bfloat162float(static_cast<const __nv_bfloat16*>(v.data)[at]);
    case DType::f16: return __half2float(static_cast<const __half*>(v.data)[at]);
    case DType::u8: return static_cast<float>(static_cast<const uint8_t*>(v.data)[at]);
    default: return static_cast<const float*>(v.data)[at];
  }
}

__device__ inline void write(const View& v, int64_t row, int64_t column, float value) {
  const int64_t at = row * v.stride + column;
  switch (v.dtype) {
    case DType::bf16: static_cast<__nv_bfloat16*>(v.data)[at] = __float2bfloat16_rn(value); break;
    case DType::f16: static_cast<__half*>(v.data)[at] = __float2half_rn(value); break;
    case DType::u8: static_cast<uint8_t*>(v.data)[at] = static_cast<uint8_t>(value); break;
    default: static_cast<float*>(v.data)[at] = value;
  }
}

// Keeps the smallest number that any thread reports.
__device__ inline void report(int64_t* place, int64_t number) {
  atomicMin(reinterpret_cast<unsigned long long*>(place), static_cast<unsigned long long>(number));
}

// Position and id of what is no row of a table, in one number that grows with the position; see CudaBackend::watch_ids.
__device__ inline int64_t position_and_id(int64_t position, int32_t id) {
  return position << 32 | static_cast<int64_t>(static_cast<uint32_t>(id));
}

constexpr unsigned whole_warp = 0xffffffffu;

struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Smallest {
  __device__ int operator()(int a, int b) const { return a < b ? a : b; }
};
struct Largest {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Combines one value of each thread of a one-dimensional block of whole warps, always in the same order; every thread gets the
// result. All threads take part.
template <typename T, typename Operation>
__device__ inline T combine_block(T value, Operation operation) {
  __shared__ T parts[32];
  for (int step = 16; step > 0; step /= 2) value = operation(value, __shfl_xor_sync(whole_warp, value, step));
  const int warps = static_cast<int>(blockDim.x) / 32;
  __syncthreads();  // the parts of an earlier call have been read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  T result = parts[0];
  for (int w = 1; w < warps; ++w) result = operation(result, parts[w]);
  return result;
}

}  // namespace sparsegpt::cuda
