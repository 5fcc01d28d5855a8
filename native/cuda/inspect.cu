// What tensors hold: zeros, patterns, NaN and infinity.
#include <utility>

#include "cuda/cuda_backend.h"
#include "cuda/each.cuh"
#include "cuda/element.cuh"
#include "cuda/sizes.h"

namespace sparsegpt::cuda {

namespace {

// counts: zeros, then for each pattern the number of its groups that have fewer than n zeros. Adds to what is there.
__global__ void count_row_zeros(unsigned long long* counts, View x, const int32_t* patterns, int64_t pattern_count) {
  unsigned long long zeros = 0;
  for (int64_t i = blockIdx.x; i < x.rows; i += gridDim.x)
    for (int64_t j = threadIdx.x; j < x.columns; j += blockDim.x) zeros += read(x, i, j) == 0.0f;
  zeros = combine_block(zeros, Sum());
  if (threadIdx.x == 0 && zeros > 0) atomicAdd(counts, zeros);
  for (int64_t p = 0; p < pattern_count; ++p) {
    const int32_t n = patterns[2 * p], m = patterns[2 * p + 1];
    unsigned long long broken = 0;
    for (int64_t i = blockIdx.x; i < x.rows; i += gridDim.x) {
      for (int64_t g = threadIdx.x; g < x.columns / m; g += blockDim.x) {
        int32_t here = 0;
        for (int64_t j = g * m; j < (g + 1) * m; ++j) here += read(x, i, j) == 0.0f;
        broken += here < n;
      }
    }
    broken = combine_block(broken, Sum());
    if (threadIdx.x == 0 && broken > 0) atomicAdd(counts + 1 + p, broken);
  }
}

__global__ void finish_zeros(double* stats, const unsigned long long* counts, const int32_t* patterns, int64_t pattern_count,
                             int64_t columns) {
  stats[0] = static_cast<double>(counts[0]);
  for (int64_t p = 0; p < pattern_count; ++p)
    stats[1 + p] = columns % patterns[2 * p + 1] == 0 && counts[1 + p] == 0 ? 1.0 : 0.0;
}

__global__ void find_non_finite(const float* matrix, int64_t rows, int64_t columns, bool upper, int64_t* bad_row) {
  for (int64_t i = blockIdx.x; i < rows; i += gridDim.x) {
    bool bad = false;
    for (int64_t j = (upper ? i : 0) + threadIdx.x; j < columns; j += blockDim.x)
      bad = bad || !isfinite(matrix[i * columns + j]);
    if (bad) report(bad_row, i);
  }
}

}  // namespace

void CudaBackend::watch_finite(const Tensor& matrix, bool upper, std::function<std::string(int64_t)> message) {
  launch("checking for NaN", find_non_finite, grid_of_rows(matrix.rows), dim3(block_threads), 0, stream_,
         matrix.data<float>(), matrix.rows, matrix.columns, upper, context_->watch("NON_FINITE", std::move(message)));
}

void CudaBackend::enqueue(const CheckFinite& o) {
  watch_finite(local(o.x), false, [subject = o.subject, rows = o.x.rows](int64_t row) {
    return CheckFinite::message(subject, rows, row) + " (in checkFinite)";
  });
}

void CudaBackend::enqueue(const CountZeros& o) {
  const int64_t pattern_count = o.pattern_count();
  const Tensor wanted = local(o.patterns), counts = zeroed(1 + pattern_count);
  const int32_t* patterns = wanted ? wanted.data<int32_t>() : nullptr;
  const int64_t step = on_host(o.tensor) ? rows_per_tile(o.tensor.columns) : std::max<int64_t>(o.tensor.rows, 1);
  for (int64_t i = 0; i < o.tensor.rows; i += step) {
    const Tensor rows = local(o.tensor.row_range(i, std::min(step, o.tensor.rows - i)));
    const dim3 grid(static_cast<unsigned>(std::min<int64_t>(rows.rows, 4096)));
    launch("count_zeros", count_row_zeros, grid, dim3(block_threads), 0, stream_, counters(counts), view(rows), patterns,
           pattern_count);
  }
  launch("count_zeros", finish_zeros, dim3(1), dim3(1), 0, stream_, o.stats.data<double>(), counters(counts), patterns,
         pattern_count, o.tensor.columns);
}

}  // namespace sparsegpt::cuda
