// SparseGPT. With H = R Rᵀ (R upper triangular, FactorHessian), U = R⁻¹ is the upper factor of the inverse Hessian that the paper
// works with. In terms of E = W - Q, dense weights less pruned ones, what the columns before a piece add to its weights is
// (E R) U: one product for each piece, of the errors with the factor's columns above it, and one with the inverse of its own
// diagonal block. Inside a piece a kernel goes column by column (sweep.cu).
#include "cuda/cuda_backend.h"
#include "cuda/each.cuh"
#include "cuda/element.cuh"
#include "cuda/sweep.h"

namespace sparsegpt::cuda {

namespace {

// --- the diagonal blocks of R -----------------------------------------------------------------------------------------

struct Piece {
  int64_t begin;
  int size;
};

__device__ Piece piece_at(const Pieces& p, int64_t index) {
  const int64_t per_block = p.per_block();
  const int64_t block_begin = index / per_block * p.block, begin = block_begin + index % per_block * p.piece;
  const int64_t end = min(min(begin + p.piece, block_begin + p.block), p.columns);
  return {begin, static_cast<int>(max(end - begin, int64_t{0}))};
}

// One block of threads for each piece, one thread for each of its columns: column j of X = R⁻¹ from the bottom up,
// X[i, j] = (δ - Σ_{i<k<=j} R[i, k] X[k, j]) / R[i, i], as the CPU backend does it.
__global__ void __launch_bounds__(sweep_columns)
    invert_piece(const float* factor, Pieces pieces, int strip, float* inverse, float* packed, int64_t packed_stride,
                 float* inverse_diagonal) {
  auto* x = reinterpret_cast<float*>(dynamic_shared());  // [size, sweep_columns]
  const Piece piece = piece_at(pieces, blockIdx.x);
  const int size = piece.size, j = static_cast<int>(threadIdx.x);
  const int64_t n = pieces.columns;
  const float* r = factor + piece.begin * n + piece.begin;
  for (int i = 0; i < size; ++i) x[i * sweep_columns + j] = 0;
  for (int i = size - 1; i >= 0; --i) {
    if (j < i || j >= size) continue;
    const float* row = r + i * n;
    const double reciprocal = 1.0 / row[i];
    double sum = 0;
    for (int k = i + 1; k <= j; ++k) sum += static_cast<double>(row[k]) * x[k * sweep_columns + j];
    x[i * sweep_columns + j] = static_cast<float>(i == j ? reciprocal : -reciprocal * sum);
  }
  if (j < size) inverse_diagonal[piece.begin + j] = x[j * sweep_columns + j];
  __syncthreads();

  float* out = inverse + blockIdx.x * pieces.piece * pieces.piece;
  if (j < size)
    for (int i = 0; i < size; ++i) out[i * pieces.piece + j] = x[i * sweep_columns + j];
  float* strips = packed + blockIdx.x * packed_stride;
  for (int s0 = 0; s0 < size; s0 += strip) {
    const int s1 = min(s0 + strip, size);
    for (int e = j; e < strip_size(size, s0, strip); e += sweep_columns) {
      const int line = e / sweep_strip, place = e % sweep_strip;
      const int i = line < sweep_strip ? s0 + line : s0 + place;
      const int column = line < sweep_strip ? s0 + place : s1 + line - sweep_strip;
      strips[e] = i < s1 && (line >= sweep_strip || column < s1) ? x[i * sweep_columns + column] : 0.0f;
    }
    strips += strip_size(size, s0, strip);
  }
}

// --- the weight -------------------------------------------------------------------------------------------------------

// The ranges that are tried for the least squared error: from all of the weights' to half of it.
constexpr int clip_steps = 21;

struct Rounding {
  int bits;
  bool symmetric, clip;
  DType type;  // that steps are rounded to
};

struct Grid {
  float step, zero;
};

// x as a number of the type, and not zero.
__device__ inline float rounded_step(float x, DType type) {
  const float largest = type == DType::f16 ? 65504.0f : 3.402823466e38f;
  const float smallest = type == DType::f16    ? 5.9604644775390625e-8f  // 2^-24
                         : type == DType::bf16 ? __uint_as_float(1u << 16)
                                               : __uint_as_float(1);
  const float step = fminf(fmaxf(x, smallest), largest);
  if (type == DType::bf16) return __bfloat162float(__float2bfloat16_rn(step));
  if (type == DType::f16) return __half2float(__float2half_rn(step));
  return step;
}

// The grid that spans `share` of the range of the weights, low <= 0 <= high.
__device__ inline Grid grid_of(float low, float high, float share, const Rounding& rounding) {
  const auto max = static_cast<float>((1 << rounding.bits) - 1);
  if (low == 0 && high == 0) low = -1, high = 1;
  low *= share;
  high *= share;
  if (rounding.symmetric)
    return {rounded_step(fmaxf(-low, high) / max * 2, rounding.type), static_cast<float>(1 << (rounding.bits - 1))};
  float step = (high - low) / max;
  if (step == INFINITY) step = high / max - low / max;
  step = rounded_step(step, rounding.type);
  // A step that was rounded down would put zero beyond the largest code.
  return {step, fminf(rintf(-low / step), max)};
}

// The grid of each group of weights, a row of x; `steps` [1, groups].
__global__ void make_grids(View x, Rounding rounding, View steps, float* zeros) {
  const int64_t groups = x.rows, size = x.columns;
  const auto max = static_cast<float>((1 << rounding.bits) - 1);
  for (int64_t g = blockIdx.x; g < groups; g += gridDim.x) {
    float lowest = 0, highest = 0;
    for (int64_t j = threadIdx.x; j < size; j += blockDim.x) {
      const float w = read(x, g, j);
      lowest = fminf(lowest, w);
      highest = fmaxf(highest, w);
    }
    const float low = -combine_block(-lowest, Largest()), high = combine_block(highest, Largest());
    Grid best = grid_of(low, high, 1, rounding);
    double least = 0;
    for (int share = 0; rounding.clip && share < clip_steps; ++share) {
      const Grid grid = grid_of(low, high, 1 - static_cast<float>(share) / (2 * clip_steps - 2), rounding);
      double sum = 0;
      for (int64_t j = threadIdx.x; j < size; j += blockDim.x) {
        const float w = read(x, g, j), code = fminf(fmaxf(rintf(w / grid.step) + grid.zero, 0.0f), max);
        const double gap = static_cast<double>(w) - grid.step * (code - grid.zero);
        sum += gap * gap;
      }
      sum = combine_block(sum, Sum());
      if (share == 0 || sum < least) least = sum, best = grid;
    }
    if (threadIdx.x == 0) {
      write(steps, 0, g, best.step);
      zeros[g] = best.zero;
    }
  }
}

// Zeros stay zero: their part of the mask is known before anything is chosen. `any` is set when there are some.
struct MarkZeros {
  float* weight;
  uint8_t* mask;
  int64_t columns;
  const uint8_t* dead;
  uint32_t* any;
  __device__ void operator()(int64_t e) const {
    if (dead[e % columns]) weight[e] = 0;
    const bool zero = weight[e] == 0;
    mask[e] = zero;
    if (zero) *any = 1;
  }
};

// Adds the zeros of some columns, `stride` apart, to their mask.
struct AddZeros {
  const float* weight;
  uint8_t* mask;
  int64_t columns, stride;
  __device__ void operator()(int64_t e) const {
    const int64_t at = e / columns * stride + e % columns;
    if (weight[at] == 0) mask[at] = 1;
  }
};

// The largest absolute weight; bits of non-negative floats order as the floats do. `largest` is zero before.
__global__ void find_largest(const float* weight, int64_t count, uint32_t* largest) {
  float most = 0;
  for (int64_t e = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; e < count; e += int64_t{gridDim.x} * blockDim.x)
    most = fmaxf(most, fabsf(weight[e]));
  most = combine_block(most, Largest());
  if (threadIdx.x == 0) atomicMax(largest, __float_as_uint(most));
}

// The power of two by which w / U_jj is multiplied before it is squared, so that no square leaves the range of a float: 1 unless the
// weights are extraordinary. Divides the U_jj that scores are formed with by it. One block of threads.
__global__ void set_scale(const uint32_t* largest, float* diagonal, int64_t columns, float* scale) {
  float smallest = INFINITY;
  for (int64_t j = threadIdx.x; j < columns; j += blockDim.x) smallest = fminf(smallest, diagonal[j]);
  smallest = -combine_block(-smallest, Largest());
  const double size = static_cast<double>(__uint_as_float(*largest)) / smallest;
  const bool usual = !(size > 0) || (size > 0x1p-40 && size < 0x1p40);
  const float factor = usual ? 1.0f : static_cast<float>(ldexp(1.0, min(max(-ilogb(size), -126), 126)));
  for (int64_t j = threadIdx.x; j < columns; j += blockDim.x) diagonal[j] /= factor;
  if (threadIdx.x == 0) *scale = factor;
}

// Adds the weights; where they are zero the sum is, too.
struct AddWeights {
  float* out;
  const float* in;
  int64_t columns, in_stride;
  __device__ void operator()(int64_t e) const {
    const float weight = in[e / columns * in_stride + e % columns];
    out[e] = weight == 0 ? 0.0f : out[e] + weight;
  }
};

__global__ void sum_losses(double* loss, const double* parts, int64_t count, const float* scale) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += parts[i];
  sum = combine_block(sum, Sum());
  if (threadIdx.x == 0) *loss = 0.5 * sum / *scale / *scale;
}

// The groups of a contiguous matrix as rows, and what belongs to each as one row.
View groups_of(const Tensor& x, int64_t groups) {
  const int64_t size = x.columns / groups;
  return {x.bytes(), x.dtype, x.rows * groups, size, size};
}
View in_one_row(const Tensor& t) { return {t.bytes(), t.dtype, 1, t.size(), t.size()}; }

}  // namespace

void CudaBackend::enqueue(const FindGrids& o) {
  const int64_t groups = o.steps.columns;
  launch("find_grids", make_grids, grid_of_rows(o.x.rows * groups), dim3(block_threads), 0, stream_,
         groups_of(local(o.x), groups), Rounding{o.bits, o.symmetric, o.clip, o.steps.dtype}, in_one_row(o.steps),
         o.zeros.data<float>());
}

void CudaBackend::enqueue(const PruneSparsegpt& o) {
  const int64_t rows = o.weight.rows, columns = o.weight.columns;
  const SolverCut c = cut(o);
  const Pieces& pieces = c.pieces;
  const int64_t block = pieces.block, piece_size = pieces.piece;
  const Tensor given = local(o.given), factor_memory = local(o.factor), dead = local(o.dead);
  const auto* factor = factor_memory.data<float>();
  auto* w = o.weight.data<float>();
  auto* pruned = o.mask.data<uint8_t>();
  const auto check_weight = [&] {
    watch_finite(o.weight, false, [](int64_t row) {
      return "the weight has a NaN or infinite entry in row " + std::to_string(row) + " (in pruneSparsegpt)";
    });
  };
  check_weight();

  Tensor steps, zeros;
  if (o.bits > 0) {
    const bool apart = !o.steps || o.steps.dtype != DType::f32;
    steps = apart ? scratch(DType::f32, rows, o.groups()) : o.steps;
    zeros = o.zeros ? o.zeros : scratch(DType::f32, rows, o.groups());
    const Rounding rounding{o.bits, o.symmetric, o.clip, o.steps ? o.steps.dtype : DType::f32};
    launch("prune_sparsegpt", make_grids, grid_of_rows(rows * o.groups()), dim3(block_threads), 0, stream_,
           groups_of(o.weight, o.groups()), rounding, in_one_row(steps), zeros.data<float>());
    if (o.steps && apart) cast(stream_, view(o.steps), view(steps));
  }
  // Of the whole matrix: the bits of the largest weight, and whether there are zeros.
  const Tensor facts = scratch(DType::u8, 1, 2 * sizeof(uint32_t)), scale = scratch(DType::f32, 1, 1);
  auto *largest = reinterpret_cast<uint32_t*>(facts.bytes()), *any_zeros = largest + 1;
  check(cudaMemsetAsync(facts.bytes(), 0, byte_size(facts), stream_), "clearing memory");
  for_indices("prune_sparsegpt", stream_, rows * columns, MarkZeros{w, pruned, columns, dead.data<uint8_t>(), any_zeros});

  // `weight` holds the dense W right of the current piece and Q left of it; `error` the dense W, and E = W - Q left of it.
  const Tensor error = scratch(DType::f32, rows, columns);
  check(cudaMemcpyAsync(error.bytes(), w, byte_size(error), cudaMemcpyDeviceToDevice, stream_), "copying");
  const Tensor inverse = scratch(DType::f32, pieces.count(), piece_size * piece_size);
  const Tensor packed = scratch(DType::f32, pieces.count(), c.packed);
  const Tensor inverse_diagonal = scratch(DType::f32, 1, columns);
  launch("prune_sparsegpt", invert_piece, dim3(static_cast<unsigned>(pieces.count())), dim3(sweep_columns),
         static_cast<size_t>(piece_size) * sweep_columns * sizeof(float), stream_, factor, pieces, c.strip,
         inverse.data<float>(), packed.data<float>(), int64_t{c.packed}, inverse_diagonal.data<float>());
  launch("prune_sparsegpt", find_largest, grid_of_rows(rows), dim3(block_threads), 0, stream_, w, rows * columns, largest);
  launch("prune_sparsegpt", set_scale, dim3(1), dim3(block_threads), 0, stream_, largest, inverse_diagonal.data<float>(),
         columns, scale.data<float>());
  const Tensor carried = scratch(DType::f32, rows, piece_size);
  const Tensor losses = zeroed(c.tiles);
  const Chooser chooser(*context_, rows, sweep_rows);
  const auto factor_block = [&](int64_t i, int64_t j) { return Operand{factor + i * columns + j, DType::f32, columns}; };

  for (int64_t begin = 0; begin < columns; begin += block) {
    const int64_t size = std::min(block, columns - begin);
    const uint8_t* chosen = given ? given.data<uint8_t>() + begin : nullptr;
    if (c.ahead) {
      // The compensated weights of the whole block, W_B + (E R) R_BB⁻¹, for their scores only.
      const Tensor ready = scratch(DType::f32, rows, size);
      if (begin > 0) {
        gemm(rows, size, begin, 1, operand(error), factor_block(0, begin), 0, ready);
        solve_triangle(ready.data<float>(), rows, size, factor + begin * columns + begin, columns, false);
      } else {
        clear(ready);
      }
      for_indices("prune_sparsegpt", stream_, rows * size, AddWeights{ready.data<float>(), w + begin, size, columns});
      const Ranking scores{
          Ranking::sparsegpt, ready.data<float>(), rows, size, size, inverse_diagonal.data<float>() + begin};
      if (o.m > 0) {
        mask_groups(stream_, scores, o.n, o.m, pruned + begin, columns);
      } else {
        chooser.choose(scores, o.sparsity);
        chooser.write_mask(scores, pruned + begin, columns);
      }
      for_indices("prune_sparsegpt", stream_, rows * size, AddZeros{w + begin, pruned + begin, size, columns});
      chosen = pruned + begin;
    }

    for (int64_t at = begin; at < begin + size; at += piece_size) {
      const int64_t width = std::min(piece_size, begin + size - at);
      const int64_t index = begin / block * pieces.per_block() + (at - begin) / piece_size;
      Tensor piece = o.weight.column_range(at, width);
      // Compensate: W̃ = W + (E R) U.
      if (at > 0) {
        Tensor product = carried;
        product.columns = product.stride = width;
        gemm(rows, width, at, 1, operand(error), factor_block(0, at), 0, product);
        gemm(rows, width, width, 1, operand(product),
             Operand{inverse.data<float>() + index * piece_size * piece_size, DType::f32, piece_size}, 1, piece);
      }
      // Choose: the smallest w² / U_jj² over all rows.
      if (chosen == nullptr && !c.inside)
        chooser.choose({Ranking::sparsegpt, piece.data<float>(), rows, width, columns, inverse_diagonal.data<float>() + at,
                        pruned + at, columns, any_zeros},
                       o.sparsity);
      Sweep s{};
      s.rows = rows;
      s.stride = columns;
      s.size = static_cast<int>(width);
      s.weight = piece.data<float>();
      s.error = error.data<float>() + at;
      s.mask = pruned + at;
      s.chosen = chosen != nullptr ? chosen + (at - begin) : nullptr;
      s.chosen_stride = columns;
      s.packed = packed.data<float>() + index * c.packed;
      s.strip = c.strip;
      s.diagonal = inverse_diagonal.data<float>() + at;
      s.any_zeros = any_zeros;
      s.scale = scale.data<float>();
      s.n = o.n;
      s.m = c.inside ? o.m : 0;
      s.state = chooser.state();
      s.quota = chooser.quota();
      if (o.bits > 0) {
        s.steps = steps.data<float>();
        s.zeros = zeros.data<float>();
        s.groups = o.groups();
        s.group_size = o.group_size();
        s.first_column = at;
        s.largest_code = static_cast<float>((1 << o.bits) - 1);
      }
      s.losses = losses.data<double>();
      sweep(stream_, s);
    }
  }
  check_weight();
  launch("prune_sparsegpt", sum_losses, dim3(1), dim3(block_threads), 0, stream_, o.loss.data<double>(),
         losses.data<double>(), c.tiles, scale.data<float>());
}

}  // namespace sparsegpt::cuda
