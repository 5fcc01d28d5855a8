// The factorisation of the Hessian. H = R Rᵀ with R upper triangular is the Cholesky factorisation of H with its rows and columns in
// reverse, which in memory is just the array in reverse: A = L Lᵀ, row-major. To cuSOLVER, whose matrices are column-major, L is
// the upper factor: A = LᵀᵀLᵀ. It touches one triangle only, so the other keeps H for another try.
#include <vector>

#include "cuda/cuda_backend.h"
#include "cuda/each.cuh"
#include "cuda/element.cuh"

namespace sparsegpt::cuda {

namespace {

struct Diagonal {
  double mean;
  int64_t dead;
};

// diagonal[j] = H_jj, or 1 and dead[j] = 1 where that is zero; their mean. One block of threads, so that the sum is always taken in
// the same order.
__global__ void read_diagonal(const float* hessian, int64_t n, float* diagonal, uint8_t* dead, Diagonal* summary) {
  double sum = 0;
  int dead_here = 0;
  for (int64_t j = threadIdx.x; j < n; j += blockDim.x) {
    const float h = hessian[j * n + j];
    dead[j] = h == 0;
    dead_here += h == 0;
    diagonal[j] = h == 0 ? 1.0f : h;
    sum += diagonal[j];
  }
  sum = combine_block(sum, Sum());
  dead_here = combine_block(dead_here, Sum());
  if (threadIdx.x == 0) *summary = {sum / static_cast<double>(n), dead_here};
}

// A tile of the upper triangle to its place in the lower one.
__global__ void mirror_tile(float* matrix, int64_t n) {
  __shared__ float tile[tile_side][tile_side + 1];
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int64_t j0 = blockIdx.x * int64_t{tile_side};
  for (int64_t row_of_tiles = blockIdx.y; row_of_tiles <= blockIdx.x; row_of_tiles += gridDim.y) {
    const int64_t i0 = row_of_tiles * tile_side;
    for (int r = y; r < tile_side; r += tile_rows)
      if (i0 + r < n && j0 + x < n) tile[r][x] = matrix[(i0 + r) * n + j0 + x];
    __syncthreads();
    for (int r = y; r < tile_side; r += tile_rows) {
      const int64_t i = j0 + r, j = i0 + x;
      // On the diagonal a tile is its own image: only what lies below is written.
      if (i < n && j < n && i > j) matrix[i * n + j] = tile[x][r];
    }
    __syncthreads();
  }
}

// The lower triangle from the upper one.
void mirror(cudaStream_t stream, float* matrix, int64_t n) {
  const auto tiles = static_cast<unsigned>((n + tile_side - 1) / tile_side);
  launch("factor_hessian", mirror_tile, dim3(tiles, std::min(tiles, 65535u)), dim3(tile_side, tile_rows), 0, stream, matrix,
         n);
}

struct Reverse {
  float* data;
  int64_t count;
  __device__ void operator()(int64_t i) const {
    const float low = data[i];
    data[i] = data[count - 1 - i];
    data[count - 1 - i] = low;
  }
};

// Element k becomes element count - 1 - k.
void reverse(cudaStream_t stream, float* data, int64_t count) {
  for_indices("factor_hessian", stream, count / 2, Reverse{data, count});
}

// Of the matrix in reverse.
struct SetDiagonal {
  float* matrix;
  int64_t n;
  const float* diagonal;
  const Diagonal* summary;
  double dampening;
  __device__ void operator()(int64_t j) const {
    matrix[j * n + j] = static_cast<float>(diagonal[n - 1 - j] + dampening * summary->mean);
  }
};

// *info = 1 when a diagonal entry of the factor is not a positive number: any NaN or infinity in a factor reaches the entries after
// it. Threads that find one agree on what they write.
struct CheckDiagonal {
  const float* matrix;
  int64_t n;
  int* info;
  __device__ void operator()(int64_t j) const {
    const float pivot = matrix[j * n + j];
    if (!(pivot > 0) || !isfinite(pivot)) *info = 1;
  }
};

__global__ void write_report(double* out, double dampening, int retries, const Diagonal* summary) {
  out[factor_report::dampening] = dampening;
  out[factor_report::retries] = retries;
  out[factor_report::dead_columns] = static_cast<double>(summary->dead);
}

}  // namespace

void CudaBackend::enqueue(const FactorHessian& o) {
  const int64_t n = o.hessian.columns;
  auto* h = o.hessian.data<float>();
  watch_finite(o.hessian, true, [](int64_t row) {
    return "the Hessian has a NaN or infinite entry in row " + std::to_string(row) + ": the layer's inputs are not finite";
  });
  const Tensor diagonal = scratch(DType::f32, 1, n), memory = scratch(DType::u8, 1, sizeof(Diagonal));
  auto* summary = reinterpret_cast<Diagonal*>(memory.bytes());
  launch("factor_hessian", read_diagonal, dim3(1), dim3(1024), 0, stream_, h, n, diagonal.data<float>(),
         o.dead.data<uint8_t>(), summary);
  mirror(stream_, h, n);
  reverse(stream_, h, n * n);

  size_t device_bytes = 0, host_bytes = 0;
  check(cusolverDnXpotrf_bufferSize(context_->solver(), context_->solver_options(), CUBLAS_FILL_MODE_UPPER, n, CUDA_R_32F, h,
                                    n, CUDA_R_32F, &device_bytes, &host_bytes),
        "sizing a factorisation");
  const Tensor workspace = scratch(DType::u8, 1, static_cast<int64_t>(std::max<size_t>(device_bytes, 1)));
  const Tensor outcome = scratch(DType::i32, 1, 1);
  std::vector<std::byte> host_workspace(host_bytes);
  int retries = 0;
  for (double used = o.dampening;; ++retries) {
    for_indices("factor_hessian", stream_, n, SetDiagonal{h, n, diagonal.data<float>(), summary, used});
    check(cusolverDnXpotrf(context_->solver(), context_->solver_options(), CUBLAS_FILL_MODE_UPPER, n, CUDA_R_32F, h, n,
                           CUDA_R_32F, workspace.bytes(), device_bytes, host_workspace.data(), host_bytes,
                           outcome.data<int32_t>()),
          "factoring");
    for_indices("factor_hessian", stream_, n, CheckDiagonal{h, n, outcome.data<int32_t>()});
    // Whether to try again is the one thing that the host has to know; it also waits for the host workspace.
    int32_t info = 0;
    context_->to_host(&info, outcome.bytes(), sizeof info);
    if (retries == 0) context_->synchronize();  // reports NaN and infinity before they look like a failed factorisation
    require(info >= 0, "cuSOLVER refused argument " + std::to_string(-info) + " of a factorisation");
    if (info == 0) {
      reverse(stream_, h, n * n);
      launch("factor_hessian", write_report, dim3(1), dim3(1), 0, stream_, o.report.data<double>(), used, retries, summary);
      return;
    }
    if (retries == 3)
      throw Error("NOT_POSITIVE_DEFINITE", "the Hessian cannot be factored, even with dampening " + std::to_string(used) +
                                               ": it is not a Gram matrix of the layer's inputs, or these are degenerate");
    used = used > 0 ? used * 10 : 0.001;
    mirror(stream_, h, n);
  }
}

}  // namespace sparsegpt::cuda
