// CUDA on the processor, for tests of the CUDA backend on machines without a GPU: as much of the language and the runtime as
// native/cuda uses. Kernels run for real, one block after another, each thread as a fiber that stops at barriers; between two
// barriers the threads run in random order, and some warps get ahead of others, so that a missing barrier shows as a wrong
// result. What is put into a stream runs later, at random times, unless someone waits for it; memory is filled with NaN where the
// stream takes it and where the stream gives it back. So a missing wait between streams shows as a wrong result too.
//
// What this cannot show: kernels that really run at the same time, alignment, and what the true libraries do.
#pragma once

#include <math.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// --- threads ----------------------------------------------------------------------------------------------------------

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulation {

// Runs the threads of all blocks; `body` is one thread's work.
void run(dim3 grid, dim3 block, size_t shared, void (*body)(const void*), const void* context);
unsigned char* dynamic_shared();
void wait_for_block();
// Every lane of the warp puts `size` bytes down and waits for the others; then of_lane reads what another one put down.
void share_with_warp(const void* value, size_t size);
const void* of_lane(unsigned lane);
unsigned lane();

template <typename T>
T exchange(T value, unsigned source) {
  share_with_warp(&value, sizeof value);
  T other;
  std::memcpy(&other, of_lane(source), sizeof other);
  return other;
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait_for_block(); }
inline void __threadfence() {}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::exchange(value, emulation::lane() ^ static_cast<unsigned>(mask));
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned step) {
  const unsigned lane = emulation::lane();
  return emulation::exchange(value, lane >= step ? lane - step : lane);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  emulation::share_with_warp(&vote, sizeof vote);
  unsigned result = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (*static_cast<const bool*>(emulation::of_lane(lane))) result |= 1u << lane;
  return result;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <typename T>
T atomicAdd(T* place, T value) {
  const T old = *place;
  *place = old + value;
  return old;
}
template <typename T>
T atomicMin(T* place, T value) {
  const T old = *place;
  *place = std::min(old, value);
  return old;
}
template <typename T>
T atomicMax(T* place, T value) {
  const T old = *place;
  *place = std::max(old, value);
  return old;
}
template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// --- the runtime ------------------------------------------------------------------------------------------------------

enum cudaError_t {
  cudaSuccess,
  cudaErrorMemoryAllocation,
  cudaErrorInsufficientDriver,
  cudaErrorUnknown,
  cudaErrorNoDevice,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold, cudaMemPoolReuseAllowInternalDependencies };
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;
enum cudaDataType_t { CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF };
using cudaDataType = cudaDataType_t;

struct cudaStream_st;
struct cudaEvent_st;
struct cudaMemPool_st;
using cudaStream_t = cudaStream_st*;
using cudaEvent_t = cudaEvent_st*;
using cudaMemPool_t = cudaMemPool_st*;
struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  int major, minor;
};

inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulation"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
// One, or as many as the environment variable SPARSEGPT_EMULATED_GPUS says.
inline cudaError_t cudaGetDeviceCount(int* count) {
  const char* wanted = std::getenv("SPARSEGPT_EMULATED_GPUS");
  *count = wanted != nullptr ? std::atoi(wanted) : 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"emulation", size_t{1} << 40, 8, 0};
  return cudaSuccess;
}
// Of this thread.
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int* device);
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t{1} << 40;
  return cudaSuccess;
}

namespace emulation {

// Puts work at the end of a stream.
void enqueue(cudaStream_t stream, std::function<void()> work);
// Dies when this thread has selected another device: what a call gets must belong to the one that is selected.
void require_device(int device);

}  // namespace emulation

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaEventCreateWithFlags(cudaEvent_t*, unsigned);
cudaError_t cudaEventDestroy(cudaEvent_t);
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t);
cudaError_t cudaEventSynchronize(cudaEvent_t);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end);

cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t);
cudaError_t cudaFreeAsync(void* memory, cudaStream_t);
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMallocHost(void** memory, size_t bytes);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t);
inline cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t*, int device) {
  emulation::require_device(device);
  return cudaSuccess;
}
inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
// Of the device that is selected.
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t);
