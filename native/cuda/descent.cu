// Least squares over the kept weights of a matrix.
#include <algorithm>
#include <cmath>

#include "cuda/cuda_backend.h"
#include "cuda/each.cuh"
#include "cuda/element.cuh"
#include "cuda/sizes.h"

namespace sparsegpt::cuda {

namespace {

struct TakeNorm {
  const float* gram;
  int64_t n;
  float* norms;
  __device__ void operator()(int64_t j) const { norms[j] = sqrtf(gram[j * n + j]); }
};

struct NormalizeElement {
  float* gram;
  int64_t n;
  const float* norms;
  __device__ float inverse(int64_t j) const { return norms[j] == 0.0f ? 0.0f : 1.0f / norms[j]; }
  __device__ void operator()(int64_t i, int64_t j) const {
    if (j < i) return;
    float& entry = gram[i * n + j];
    entry = i == j && norms[i] != 0.0f ? 1.0f : entry * (inverse(i) * inverse(j));
  }
};

struct ScaleColumn {
  View x;
  const float* factors;
  bool inverse;
  __device__ void operator()(int64_t i, int64_t j) const {
    const float v = read(x, i, j), f = factors[j];
    write(x, i, j, !inverse ? v * f : f == 0.0f ? 0.0f : v / f);
  }
};

// Some rows of a matrix on their way; row-major, `columns` apart.
struct Rows {
  float *weight, *residual;
  const uint8_t* mask;
  float *direction, *image;
  double* squares;  // of each row's residual
  int64_t rows, columns;
};

// A block of threads takes a row.
__global__ void begin_rows(Rows r) {
  for (int64_t i = blockIdx.x; i < r.rows; i += gridDim.x) {
    double square = 0;
    for (int64_t j = i * r.columns + threadIdx.x; j < (i + 1) * r.columns; j += blockDim.x) {
      const float left = r.mask[j] != 0 ? 0.0f : r.residual[j];
      r.residual[j] = r.direction[j] = left;
      square += static_cast<double>(left) * left;
    }
    square = combine_block(square, Sum());
    if (threadIdx.x == 0) r.squares[i] = square;
  }
}

__global__ void descend_rows(Rows r) {
  for (int64_t i = blockIdx.x; i < r.rows; i += gridDim.x) {
    const int64_t begin = i * r.columns + threadIdx.x, end = (i + 1) * r.columns;
    double length = 0;
    for (int64_t j = begin; j < end; j += blockDim.x) length += static_cast<double>(r.direction[j]) * r.image[j];
    length = combine_block(length, Sum());
    const double before = r.squares[i];
    // A row that has come to its end stays there.
    const bool ends = !(length > 0) || before == 0;
    const float step = ends ? 0.0f : static_cast<float>(before / length);
    double square = 0;
    for (int64_t j = begin; j < end && !ends; j += blockDim.x) {
      if (r.mask[j] != 0) continue;
      r.weight[j] += step * r.direction[j];
      r.residual[j] -= step * r.image[j];
      square += static_cast<double>(r.residual[j]) * r.residual[j];
    }
    square = combine_block(square, Sum());
    const float factor = ends ? 0.0f : static_cast<float>(square / before);
    for (int64_t j = begin; j < end && !ends; j += blockDim.x) r.direction[j] = r.residual[j] + factor * r.direction[j];
    if (threadIdx.x == 0) r.squares[i] = square;
  }
}

// One block of threads, so that the sum is always taken in the same order.
__global__ void add_up(const double* values, int64_t count, double* sum) {
  double part = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) part += values[i];
  part = combine_block(part, Sum());
  if (threadIdx.x == 0) *sum = part;
}

__global__ void write_descent(double* report, double iterations, double residual) {
  report[descent_report::iterations] = iterations;
  report[descent_report::residual] = residual;
}

}  // namespace

void CudaBackend::enqueue(const NormalizeGram& o) {
  const int64_t n = o.gram.columns;
  auto *gram = o.gram.data<float>(), *norms = o.norms.data<float>();
  for_indices("normalize_gram", stream_, n, TakeNorm{gram, n, norms});
  for_elements("normalize_gram", stream_, n, n, NormalizeElement{gram, n, norms});
}

void CudaBackend::enqueue(const ScaleColumns& o) {
  const Tensor factors = local(o.factors);
  for_elements("scale_columns", stream_, o.x.rows, o.x.columns, ScaleColumn{view(o.x), factors.data<float>(), o.inverse});
}

void CudaBackend::enqueue(const ConjugateGradients& o) {
  const int64_t n = o.weight.columns, most = o.tile_rows();
  double iterations = 0, residual = 0;
  const Tensor mask = local(o.mask), factor = local(o.factor);
  const Tensor direction = scratch(DType::f32, most, n), half = scratch(DType::f32, most, n),
               image = scratch(DType::f32, most, n), squares = scratch(DType::f64, 1, most), sum = scratch(DType::f64, 1, 1);
  for (int64_t begin = 0; begin < o.weight.rows && n > 0; begin += most) {
    const int64_t count = std::min(most, o.weight.rows - begin), at = begin * n;
    const Rows rows{o.weight.data<float>() + at,
                    o.residual.data<float>() + at,
                    mask.data<uint8_t>() + at,
                    direction.data<float>(),
                    image.data<float>(),
                    squares.data<double>(),
                    count,
                    n};
    // Whether to go on is what the host has to know.
    const auto total = [&] {
      launch("conjugate_gradients", add_up, dim3(1), dim3(1024), 0, stream_, rows.squares, count, sum.data<double>());
      double result = 0;
      context_->to_host(&result, sum.bytes(), sizeof result);
      return result;
    };
    launch("conjugate_gradients", begin_rows, grid_of_rows(count), dim3(block_threads), 0, stream_, rows);
    const double first = total();
    double left = first;
    int64_t iteration = 0;
    for (; iteration < o.iterations && left > o.tolerance * o.tolerance * first; ++iteration) {
      multiply_triangle(half.data<float>(), rows.direction, count, n, factor.data<float>(), false);
      multiply_triangle(rows.image, half.data<float>(), count, n, factor.data<float>(), true);
      launch("conjugate_gradients", descend_rows, grid_of_rows(count), dim3(block_threads), 0, stream_, rows);
      left = total();
    }
    iterations = std::max(iterations, static_cast<double>(iteration));
    if (first > 0) residual = std::max(residual, std::sqrt(left / first));
  }
  launch("conjugate_gradients", write_descent, dim3(1), dim3(1), 0, stream_, o.report.data<double>(), iterations, residual);
}

}  // namespace sparsegpt::cuda
