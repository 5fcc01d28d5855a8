// Products of matrices, by cuBLAS, whose 64-bit functions are called since a matrix of 49152 columns (OPT-175B) has more than 2^31
// elements. A column-major library sees the transposes of row-major matrices, and Cᵀ = Bᵀ Aᵀ.
#include "cuda/cuda_backend.h"
#include "cuda/each.cuh"
#include "cuda/element.cuh"
#include "cuda/sizes.h"

namespace sparsegpt::cuda {

namespace {

cudaDataType_t library_type(DType dtype) {
  return dtype == DType::bf16 ? CUDA_R_16BF : dtype == DType::f16 ? CUDA_R_16F : CUDA_R_32F;
}

struct SetRows {
  View out, row;
  __device__ void operator()(int64_t i, int64_t j) const { write(out, i, j, read(row, 0, j)); }
};

// A block of threads sums 32 columns, each by 32 threads.
__global__ void sum_squares(float* sums, View x, float factor) {
  __shared__ float parts[tile_side][tile_side + 1];
  const int64_t j = blockIdx.x * int64_t{tile_side} + threadIdx.x;
  float sum = 0;
  if (j < x.columns) {
    for (int64_t t = threadIdx.y; t < x.rows; t += tile_side) {
      const float v = read(x, t, j);
      sum += v * v;
    }
  }
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || j >= x.columns) return;
  for (int r = 1; r < tile_side; ++r) sum += parts[r][threadIdx.x];
  sums[j] += factor * sum;
}

}  // namespace

void CudaBackend::gemm(int64_t m, int64_t n, int64_t k, float alpha, const Operand& a, const Operand& b, float beta,
                       const Tensor& c) {
  require(a.dtype == b.dtype, "the operands of a product must agree in type");
  check(cublasGemmEx_64(context_->blas(), b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                        n, m, k, &alpha, b.data, library_type(b.dtype), b.stride, a.data, library_type(a.dtype), a.stride,
                        &beta, c.bytes(), library_type(c.dtype), c.stride,
                        a.dtype == DType::f32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "multiplying");
}

void CudaBackend::solve_triangle(float* x, int64_t count, int64_t n, const float* r, int64_t r_stride, bool transposed) {
  const float one = 1;
  check(cublasStrsm_64(context_->blas(), CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER, transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                       CUBLAS_DIAG_NON_UNIT, n, count, &one, r, r_stride, x, n),
        "solving a triangle");
}

void CudaBackend::multiply_triangle(float* out, const float* x, int64_t count, int64_t n, const float* r, bool transposed) {
  const float one = 1;
  check(cublasStrmm_64(context_->blas(), CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER, transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                       CUBLAS_DIAG_NON_UNIT, n, count, &one, r, n, x, n, out, n),
        "multiplying by a triangle");
}

void CudaBackend::enqueue(const Linear& o) {
  if (o.x.rows == 0 || o.weight.rows == 0) return;
  const auto [type, direct, step] = cut(o);
  const Tensor left = local(o.x, type);
  for (int64_t row = 0; row < o.weight.rows; row += step) {
    const int64_t count = std::min(step, o.weight.rows - row);
    const Tensor right = local(o.weight.row_range(row, count), type);
    const Tensor target = o.out.column_range(row, count);
    const Tensor sums = direct ? target : scratch(DType::f32, o.x.rows, count);
    if (o.bias) {
      // It is there before the product is added, so that a half-precision output is rounded once.
      const Tensor bias = local(o.bias.column_range(row, count));
      for_elements("linear", stream_, sums.rows, sums.columns, SetRows{view(sums), view(bias)});
    }
    gemm(o.x.rows, count, o.x.columns, 1, operand(left), transposed(right), o.bias ? 1 : 0, sums);
    if (!direct) cast(stream_, view(target), view(sums));
  }
}

void CudaBackend::enqueue(const AccumulateProduct& o) {
  if (o.x.rows == 0) return;
  const DType type = product_type(o.x, o.y);
  const Tensor x = local(o.x, type), y = local(o.y, type);
  gemm(x.columns, y.columns, x.rows, o.scale, transposed(x), operand(y), 1, o.sums);
}

// Rows of tiles of the upper triangle; below the diagonal only what lies in a tile on it is computed for nothing.
void CudaBackend::enqueue(const AccumulateGram& o) {
  if (o.x.rows == 0) return;
  const Tensor x = local(o.x);
  const int64_t n = x.columns, step = std::max<int64_t>(512, (n / 8 + 127) / 128 * 128);
  for (int64_t i = 0; i < n; i += step) {
    const int64_t count = std::min(step, n - i);
    gemm(count, n - i, x.rows, o.scale, transposed(x.column_range(i, count)), operand(x.column_range(i, n - i)), 1,
         o.gram.row_range(i, count).column_range(i, n - i));
  }
}

void CudaBackend::enqueue(const AccumulateSquares& o) {
  const Tensor x = local(o.x);
  const dim3 grid(static_cast<unsigned>((x.columns + tile_side - 1) / tile_side));
  launch("accumulate_squares", sum_squares, grid, dim3(tile_side, tile_side), 0, stream_, o.sums.data<float>(), view(x),
         o.scale);
}

void CudaBackend::enqueue(const TriangularProduct& o) {
  if (o.x.size() == 0) return;
  const Tensor x = local(o.x), factor = local(o.factor);
  const int64_t rows = x.rows, n = x.columns;
  auto* out = o.out.data<float>();
  if (o.inverse) {
    check(cudaMemcpyAsync(out, x.bytes(), byte_size(x), cudaMemcpyDeviceToDevice, stream_), "copying");
    solve_triangle(out, rows, n, factor.data<float>(), n, o.transposed);
    return;
  }
  multiply_triangle(out, x.data<float>(), rows, n, factor.data<float>(), o.transposed);
}

}  // namespace sparsegpt::cuda
