// What the files of the CUDA backend share of each other's kernels, each enqueued on a stream. Everything lies in device memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/tensor.h"

namespace sparsegpt::cuda {

// A tensor as kernels see it.
struct View {
  void* data;
  DType dtype;
  int64_t rows, columns, stride;
};
inline View view(const Tensor& t) { return {t.bytes(), t.dtype, t.rows, t.columns, t.stride}; }
inline void* element(const View& v, int64_t row, int64_t column) {
  return static_cast<std::byte*>(v.data) + (row * v.stride + column) * static_cast<int64_t>(dtype_size(v.dtype));
}

// moving.cu: out = in, between float types.
void cast(cudaStream_t stream, const View& out, const View& in);

}  // namespace sparsegpt::cuda
