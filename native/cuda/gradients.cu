// Gradients by rows and by elements, and the optimizer. Sums over tokens are made in an order that depends on the shapes alone.
#include <cmath>

#include "cuda/cuda_backend.h"
#include "cuda/each.cuh"
#include "cuda/element.cuh"
#include "cuda/sizes.h"

namespace sparsegpt::cuda {

namespace {

// --- sums over rows ---------------------------------------------------------------------------------------------------

// parts[strip, j] = the sum of term(t, j) over the rows t of the strip; a block of threads sums 32 columns, each by 32 threads.
template <typename Term>
__global__ void __launch_bounds__(tile_side* tile_side) sum_strips(float* parts, int64_t rows, int64_t columns, Term term) {
  __shared__ float sums[tile_side][tile_side + 1];
  const int64_t j = blockIdx.x * int64_t{tile_side} + threadIdx.x;
  for (int64_t strip = blockIdx.y; strip * strip_rows < rows; strip += gridDim.y) {
    const int64_t end = min(rows, (strip + 1) * strip_rows);
    float sum = 0;
    for (int64_t t = strip * strip_rows + threadIdx.y; t < end && j < columns; t += tile_side) sum += term(t, j);
    __syncthreads();  // the sums of the strip before have been read
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || j >= columns) continue;
    for (int r = 1; r < tile_side; ++r) sum += sums[r][threadIdx.x];
    parts[strip * columns + j] = sum;
  }
}

struct AddStrips {
  float* sums;
  const float* parts;
  int64_t strips, columns;
  __device__ void operator()(int64_t j) const {
    float sum = 0;
    for (int64_t strip = 0; strip < strips; ++strip) sum += parts[strip * columns + j];
    sums[j] += sum;
  }
};

// sums[j] += the sum of term(t, j) over the rows of x; parts: [strips, columns].
template <typename Term>
void add_rows(const char* name, cudaStream_t stream, const Tensor& sums, const Tensor& x, const Tensor& parts,
              const Term& term) {
  const int64_t strips = strips_of(x);
  const dim3 grid(static_cast<unsigned>((x.columns + tile_side - 1) / tile_side),
                  static_cast<unsigned>(std::min<int64_t>(strips, 65535)));
  launch(name, sum_strips<Term>, grid, dim3(tile_side, tile_side), 0, stream, parts.data<float>(), x.rows, x.columns, term);
  for_indices(name, stream, x.columns, AddStrips{sums.data<float>(), parts.data<float>(), strips, x.columns});
}

struct RowTerm {
  View x;
  __device__ float operator()(int64_t t, int64_t j) const { return read(x, t, j); }
};

// --- norms ------------------------------------------------------------------------------------------------------------

// dx = scale (dy weight - shift - (x - mean) along)
struct NormRow {
  float mean, scale, along, shift;
};
static_assert(sizeof(NormRow) == norm_row_bytes);

__global__ void describe_norm(NormRow* out, View x, View dy, const float* weight, bool centred, float epsilon) {
  const auto count = static_cast<float>(x.columns);
  for (int64_t i = blockIdx.x; i < x.rows; i += gridDim.x) {
    float mean = 0;
    if (centred) {
      float sum = 0;
      for (int64_t j = threadIdx.x; j < x.columns; j += blockDim.x) sum += read(x, i, j);
      mean = combine_block(sum, Sum()) / count;
    }
    float squares = 0, slopes = 0, products = 0;
    for (int64_t j = threadIdx.x; j < x.columns; j += blockDim.x) {
      const float value = read(x, i, j) - mean, slope = read(dy, i, j) * weight[j];
      squares += value * value;
      slopes += slope;
      products += slope * value;
    }
    squares = combine_block(squares, Sum());
    slopes = combine_block(slopes, Sum());
    products = combine_block(products, Sum());
    if (threadIdx.x != 0) continue;
    const float scale = 1.0f / sqrtf(squares / count + epsilon);
    out[i] = {mean, scale, products / count * scale * scale, centred ? slopes / count : 0.0f};
  }
}

struct NormWeightTerm {
  const NormRow* rows;
  View x, dy;
  __device__ float operator()(int64_t t, int64_t j) const {
    return read(dy, t, j) * (read(x, t, j) - rows[t].mean) * rows[t].scale;
  }
};

struct NormElement {
  const NormRow* rows;
  View dx, x, dy;
  const float* weight;
  __device__ void operator()(int64_t i, int64_t j) const {
    const NormRow r = rows[i];
    write(dx, i, j, r.scale * (read(dy, i, j) * weight[j] - r.shift - (read(x, i, j) - r.mean) * r.along));
  }
};

// --- activations ------------------------------------------------------------------------------------------------------

// An activation's value and derivative.
struct Slope {
  float value, derivative;
};

__device__ Slope slope_of(float x, Activation kind) {
  switch (kind) {
    case Activation::relu: return {0.0f > x ? 0.0f : x, x > 0.0f ? 1.0f : 0.0f};
    case Activation::gelu: {
      const float below = 0.5f * erfcf(-0.70710678118654752f * x);
      return {x * below, below + x * 0.3989422804f * expf(-0.5f * x * x)};
    }
    case Activation::gelu_tanh: {
      const float share = 1.0f / (1.0f + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
      return {x * share, share + x * share * (1.0f - share) * 1.5957691216057308f * (1.0f + 0.134145f * x * x)};
    }
    case Activation::silu: {
      const float share = 1.0f / (1.0f + expf(-x));
      return {x * share, share + x * share * (1.0f - share)};
    }
    case Activation::relu2: return {0.0f > x ? 0.0f : x * x, x > 0.0f ? 2.0f * x : 0.0f};
    case Activation::clamped_swish: {
      const float clamped = x > 7.0f ? 7.0f : x, share = 1.0f / (1.0f + expf(-1.702f * clamped));
      return {clamped * share, x > 7.0f ? 0.0f : share + 1.702f * x * share * (1.0f - share)};
    }
    case Activation::clamped_linear: {
      const bool within = x >= -7.0f && x <= 7.0f;
      return {1.0f + (x > 7.0f ? 7.0f : x < -7.0f ? -7.0f : x), within ? 1.0f : 0.0f};
    }
  }
  return {x, 1.0f};
}

struct ActivateSlope {
  View dy, x;
  Activation kind;
  __device__ void operator()(int64_t i, int64_t j) const {
    write(dy, i, j, read(dy, i, j) * slope_of(read(x, i, j), kind).derivative);
  }
};

struct GateSlope {
  View dy, dup, x, up;
  Activation kind;
  __device__ void operator()(int64_t i, int64_t j) const {
    const Slope f = slope_of(read(x, i, j), kind);
    const float gradient = read(dy, i, j), factor = read(up, i, j);
    write(dup, i, j, gradient * f.value);
    write(dy, i, j, gradient * factor * f.derivative);
  }
};

// --- rows -------------------------------------------------------------------------------------------------------------

struct PutElement {
  View out, x;
  int64_t first, count, stride;
  __device__ void operator()(int64_t t, int64_t j) const {
    write(out, t, j / count * stride + first + j % count, read(x, t, j));
  }
};

__global__ void dot_rows(float* dots, View x, View y) {
  for (int64_t i = blockIdx.x; i < x.rows; i += gridDim.x) {
    float sum = 0;
    for (int64_t j = threadIdx.x; j < x.columns; j += blockDim.x) sum += read(x, i, j) * read(y, i, j);
    sum = combine_block(sum, Sum());
    if (threadIdx.x == 0) dots[i] = sum;
  }
}

// dx.data may be null.
__global__ void relative_errors(float* errors, View dx, View x, View target, float scale, float typical_norm) {
  for (int64_t i = blockIdx.x; i < x.rows; i += gridDim.x) {
    float gaps = 0, norms = 0;
    for (int64_t j = threadIdx.x; j < x.columns; j += blockDim.x) {
      const float wanted = read(target, i, j), gap = read(x, i, j) - wanted;
      gaps += gap * gap;
      norms += wanted * wanted;
    }
    gaps = combine_block(gaps, Sum());
    const float whole = combine_block(norms, Sum()) + 1e-30f;
    const float norm = typical_norm > 0.0f && typical_norm < whole ? sqrtf(typical_norm) * sqrtf(whole) : whole;
    if (threadIdx.x == 0) errors[i] = gaps / norm;
    if (dx.data == nullptr) continue;
    const float factor = 2.0f * scale / norm;
    for (int64_t j = threadIdx.x; j < x.columns; j += blockDim.x)
      write(dx, i, j, factor * (read(x, i, j) - read(target, i, j)));
  }
}

// --- the optimizer ----------------------------------------------------------------------------------------------------

struct AdamElement {
  float *weight, *first, *second;
  const float* gradient;
  float rate, beta1, beta2, epsilon, decay;
  float first_scale, second_scale;  // undo the bias of the running means
  bool keep_zeros;
  __device__ void operator()(int64_t i) const {
    const float g = gradient[i], w = weight[i];
    const float m = beta1 * first[i] + (1.0f - beta1) * g, v = beta2 * second[i] + (1.0f - beta2) * g * g;
    first[i] = m;
    second[i] = v;
    if (keep_zeros && w == 0.0f) return;
    weight[i] = w - rate * (m * first_scale / (sqrtf(v * second_scale) + epsilon) + decay * w);
  }
};

}  // namespace

void CudaBackend::enqueue(const AccumulateRows& o) {
  if (o.x.rows == 0) return;
  const Tensor x = local(o.x), parts = scratch(DType::f32, strips_of(x), x.columns);
  add_rows("accumulate_rows", stream_, o.sums, x, parts, RowTerm{view(x)});
}

void CudaBackend::enqueue(const NormGradient& o) {
  if (o.x.rows == 0) return;
  const Tensor x = local(o.x), dy = local(o.dy), weight = local(o.weight);
  const Tensor row_memory = scratch(DType::u8, x.rows, norm_row_bytes), parts = scratch(DType::f32, strips_of(x), x.columns);
  auto* rows = reinterpret_cast<NormRow*>(row_memory.bytes());
  launch("norm_gradient", describe_norm, grid_of_rows(x.rows), dim3(block_threads), 0, stream_, rows, view(x), view(dy),
         weight.data<float>(), static_cast<bool>(o.dbias), o.epsilon);
  // Before dx takes the place of dy.
  add_rows("norm_gradient", stream_, o.dweight, x, parts, NormWeightTerm{rows, view(x), view(dy)});
  if (o.dbias) add_rows("norm_gradient", stream_, o.dbias, x, parts, RowTerm{view(dy)});
  for_elements("norm_gradient", stream_, x.rows, x.columns,
               NormElement{rows, view(o.dx), view(x), view(dy), weight.data<float>()});
}

void CudaBackend::enqueue(const ActivateGradient& o) {
  const Tensor x = local(o.x);
  for_elements("activate_gradient", stream_, x.rows, x.columns, ActivateSlope{view(o.dy), view(x), o.kind});
}

void CudaBackend::enqueue(const GateGradient& o) {
  const Tensor x = local(o.x), up = local(o.up);
  for_elements("gate_gradient", stream_, x.rows, x.columns, GateSlope{view(o.dy), view(o.dup), view(x), view(up), o.kind});
}

void CudaBackend::enqueue(const PutColumns& o) {
  const Tensor x = local(o.x);
  for_elements("put_columns", stream_, x.rows, x.columns, PutElement{view(o.out), view(x), o.first, o.count, o.stride});
}

void CudaBackend::enqueue(const RowDots& o) {
  const Tensor x = local(o.x), y = local(o.y);
  launch("row_dots", dot_rows, grid_of_rows(x.rows), dim3(block_threads), 0, stream_, o.dots.data<float>(), view(x),
         view(y));
}

void CudaBackend::enqueue(const RelativeErrors& o) {
  const Tensor x = local(o.x), target = local(o.target);
  launch("relative_errors", relative_errors, grid_of_rows(x.rows), dim3(block_threads), 0, stream_, o.errors.data<float>(),
         o.dx ? view(o.dx) : View{}, view(x), view(target), o.scale, o.typical_norm);
}

void CudaBackend::enqueue(const Adam& o) {
  if (o.weight.size() == 0) return;
  const Tensor gradient = local(o.gradient);
  const auto unbiased = [&](float beta) {
    return static_cast<float>(1 / (1 - std::pow(static_cast<double>(beta), static_cast<double>(o.step))));
  };
  for_indices("adam", stream_, o.weight.size(),
              AdamElement{o.weight.data<float>(), o.first.data<float>(), o.second.data<float>(), gradient.data<float>(),
                          o.rate, o.beta1, o.beta2, o.epsilon, o.decay, unbiased(o.beta1), unbiased(o.beta2), o.keep_zeros});
}

}  // namespace sparsegpt::cuda
