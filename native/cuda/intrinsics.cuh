// The few things of CUDA that C++ has no words for: launching, dynamic shared memory, tensor-core instructions, the clock.
// They are gathered here because the tests replace this file: native/test/cuda_emulation runs the kernels on the processor.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/status.h"

namespace sparsegpt::cuda {

// The kernel alone decides the types of its parameters.
template <typename T>
struct Same {
  using type = T;
};

template <typename... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
            typename Same<Parameters>::type... arguments) {
  if (grid.x == 0 || grid.y == 0) return;
  // More than this much dynamic shared memory has to be asked for.
  if (shared > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)), name);
  kernel<<<grid, block, shared, stream>>>(arguments...);
  check(cudaGetLastError(), name);
}

// The start of the launch's dynamic shared memory.
__device__ inline unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
  return dynamic_shared_memory;
}

__device__ inline uint64_t nanoseconds() {
  uint64_t time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
  return time;
}

// Tensor-core product of one warp, D = A B + D: A [16, 16], B [16, 8], D [16, 8] in float32. A register of `a` and `b` holds
// two neighbours along the summed dimension. With g = lane / 4 and t = lane % 4:
//   a[0] = A[g][2t..], a[1] = A[g+8][2t..], a[2] = A[g][2t+8..], a[3] = A[g+8][2t+8..]
//   b[0] = B[2t..][g], b[1] = B[2t+8..][g];  d[0..1] = D[g][2t..], d[2..3] = D[g+8][2t..]
template <bool bf16>
__device__ inline void multiply_tile(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (bf16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Two 8 x 8 tiles of 16-bit elements from shared memory, transposed on the way: lane l < 16 gives the address of row l % 8 of
// tile l / 8 (16 bytes, aligned); with g, t as above, r0 and r1 hold the elements [2t..2t+1][g] of tile 0 and 1.
__device__ inline void load_transposed(uint32_t& r0, uint32_t& r1, const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r0), "=r"(r1)
               : "r"(address)
               : "memory");
}

}  // namespace sparsegpt::cuda
