// Kernels that do something for every element of a matrix.
#pragma once

#include <algorithm>

#include "cuda/intrinsics.cuh"

namespace sparsegpt::cuda {

constexpr int block_threads = 256;

// Calls f(row, column) for every element of [rows, columns]; consecutive threads take consecutive columns.
template <typename Function>
__global__ void each_element(int64_t rows, int64_t columns, Function f) {
  for (int64_t i = blockIdx.y * int64_t{blockDim.y} + threadIdx.y; i < rows; i += int64_t{gridDim.y} * blockDim.y)
    for (int64_t j = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; j < columns; j += int64_t{gridDim.x} * blockDim.x)
      f(i, j);
}

template <typename Function>
void for_elements(const char* name, cudaStream_t stream, int64_t rows, int64_t columns, const Function& f) {
  if (rows == 0 || columns == 0) return;
  unsigned width = 32;
  while (width < block_threads && width < columns) width *= 2;
  const unsigned height = block_threads / width;
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>((columns + width - 1) / width, 65535)),
                  static_cast<unsigned>(std::min<int64_t>((rows + height - 1) / height, 65535)));
  launch(name, each_element<Function>, grid, dim3(width, height), 0, stream, rows, columns, f);
}

// Calls f(index) for every index below count.
template <typename Function>
__global__ void each_index(int64_t count, Function f) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) f(i);
}

template <typename Function>
void for_indices(const char* name, cudaStream_t stream, int64_t count, const Function& f) {
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>((count + block_threads - 1) / block_threads, 1 << 20)));
  launch(name, each_index<Function>, grid, dim3(block_threads), 0, stream, count, f);
}

// One block of threads for each row, or for some rows in turn.
inline dim3 grid_of_rows(int64_t rows) { return dim3(static_cast<unsigned>(std::min<int64_t>(rows, 1 << 20))); }

// One warp for each item of a range, or for some in turn: a warp begins with its index and goes on by the number of warps.
constexpr int warp_size = 32, warps_per_block = block_threads / warp_size;
__device__ inline int64_t warp_index() { return blockIdx.x * int64_t{warps_per_block} + threadIdx.x / warp_size; }
__device__ inline int64_t warp_count() { return int64_t{gridDim.x} * warps_per_block; }
inline dim3 grid_of_warps(int64_t items) { return grid_of_rows((items + warps_per_block - 1) / warps_per_block); }

// A square tile that goes through shared memory, so that both sides are accessed along rows.
constexpr int tile_side = 32, tile_rows = 8;

}  // namespace sparsegpt::cuda
