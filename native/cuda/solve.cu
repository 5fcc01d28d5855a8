// The kernels around and inside the SparseGPT solver (DESIGN's symbols: H = R Rᵀ, U = R⁻¹, E = W - Q).
#include <algorithm>

#include "cuda/threshold.cuh"

namespace sparsegpt::cuda {

namespace {

constexpr int block_threads = 256;

unsigned blocks_for(int64_t count, int64_t most = 1 << 20) {
  return static_cast<unsigned>(std::min<int64_t>((count + block_threads - 1) / block_threads, most));
}

// Calls f(index) for every index below count.
template <typename Function>
__global__ void each_index(int64_t count, Function f) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) f(i);
}

template <typename Function>
void for_indices(const char* name, cudaStream_t stream, int64_t count, const Function& f) {
  launch(name, each_index<Function>, dim3(blocks_for(count)), dim3(block_threads), 0, stream, count, f);
}

// --- the Hessian ------------------------------------------------------------------------------------------------------

__global__ void find_non_finite_kernel(const float* matrix, int64_t rows, int64_t columns, bool upper, int64_t* bad_row) {
  for (int64_t i = blockIdx.x; i < rows; i += gridDim.x) {
    bool bad = false;
    for (int64_t j = (upper ? i : 0) + threadIdx.x; j < columns; j += blockDim.x)
      bad = bad || !isfinite(matrix[i * columns + j]);
    if (bad) report(bad_row, i);
  }
}

// One block of threads, so that the sum is always taken in the same order.
__global__ void read_diagonal_kernel(const float* hessian, int64_t n, float* diagonal, uint8_t* dead, Diagonal* summary) {
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

constexpr int side = 32, tile_rows = 8;

// A tile of the upper triangle to its place in the lower one, through shared memory.
__global__ void mirror_tile(float* matrix, int64_t n) {
  __shared__ float tile[side][side + 1];
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int64_t j0 = blockIdx.x * int64_t{side};
  for (int64_t row_of_tiles = blockIdx.y; row_of_tiles <= blockIdx.x; row_of_tiles += gridDim.y) {
    const int64_t i0 = row_of_tiles * side;
    for (int r = y; r < side; r += tile_rows)
      if (i0 + r < n && j0 + x < n) tile[r][x] = matrix[(i0 + r) * n + j0 + x];
    __syncthreads();
    for (int r = y; r < side; r += tile_rows) {
      const int64_t i = j0 + r, j = i0 + x;
      // On the diagonal a tile is its own image: only what lies below is written.
      if (i < n && j < n && i > j) matrix[i * n + j] = tile[x][r];
    }
    __syncthreads();
  }
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

struct SetReversedDiagonal {
  float* matrix;
  int64_t n;
  const float* diagonal;
  const Diagonal* summary;
  double dampening;
  __device__ void operator()(int64_t j) const {
    matrix[j * n + j] = static_cast<float>(diagonal[n - 1 - j] + dampening * summary->mean);
  }
};

// Any NaN or infinity in a factor reaches the diagonal entries after it. Threads that find one agree on what they write.
struct CheckDiagonal {
  const float* matrix;
  int64_t n;
  int* info;
  __device__ void operator()(int64_t j) const {
    const float pivot = matrix[j * n + j];
    if (!(pivot > 0) || !isfinite(pivot)) *info = 1;
  }
};

// --- statistics -------------------------------------------------------------------------------------------------------

__global__ void start_clock_kernel(double* seconds) { *reinterpret_cast<uint64_t*>(seconds) = nanoseconds(); }

__device__ double seconds_since(const double* seconds) {
  return static_cast<double>(nanoseconds() - *reinterpret_cast<const uint64_t*>(seconds)) * 1e-9;
}

__global__ void finish_factor_kernel(double* stats, double dampening, int retries, const Diagonal* summary) {
  stats[factor_stats::dampening] = dampening;
  stats[factor_stats::retries] = retries;
  stats[factor_stats::dead_columns] = static_cast<double>(summary->dead);
  stats[factor_stats::seconds] = seconds_since(stats + factor_stats::seconds);
}

__global__ void finish_solve_kernel(double* stats, const double* losses, int64_t count, const unsigned long long* zeros) {
  double sum = 0;
  if (losses != nullptr)
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += losses[i];
  sum = combine_block(sum, Sum());
  if (threadIdx.x != 0) return;
  stats[solve_stats::loss] = losses != nullptr ? 0.5 * sum : static_cast<double>(NAN);
  stats[solve_stats::zeros] = static_cast<double>(*zeros);
  stats[solve_stats::seconds] = seconds_since(stats + solve_stats::seconds);
}

// --- the diagonal blocks of R -----------------------------------------------------------------------------------------

struct Piece {
  int64_t begin;
  int size;
};

__device__ Piece piece_at(const Pieces& p, int64_t index) {
  const int64_t per_block = (p.block + p.piece - 1) / p.piece;
  const int64_t block_begin = index / per_block * p.block, begin = block_begin + index % per_block * p.piece;
  const int64_t end = min(min(begin + p.piece, block_begin + p.block), p.columns);
  return {begin, static_cast<int>(max(end - begin, int64_t{0}))};
}

// Where the strip that starts at column s0 lies in a packed piece: its diagonal tile [strip, strip], rows one after another,
// then for each column right of it the column of U above, [sweep_strip].
__host__ __device__ inline int strip_size(int size, int s0, int strip) {
  const int end = s0 + strip < size ? s0 + strip : size;
  return sweep_strip * (sweep_strip + size - end);
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

// --- preparing the weight ---------------------------------------------------------------------------------------------

__global__ void make_grid_kernel(const float* weight, int64_t rows, int64_t columns, float max, float* scale, float* zero) {
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    float lowest = 0, highest = 0;  // zero is on the grid
    for (int64_t j = threadIdx.x; j < columns; j += blockDim.x) {
      lowest = fminf(lowest, weight[r * columns + j]);
      highest = fmaxf(highest, weight[r * columns + j]);
    }
    float low = -combine_block(-lowest, Largest()), high = combine_block(highest, Largest());
    if (low == 0 && high == 0) low = -1, high = 1;
    if (threadIdx.x == 0) {
      const float step = (high - low) / max;
      scale[r] = step;
      zero[r] = rintf(-low / step);
    }
  }
}

struct ZeroDead {
  float* weight;
  int64_t columns;
  const uint8_t* dead;
  __device__ void operator()(int64_t e) const {
    if (dead[e % columns]) weight[e] = 0;
  }
};

struct AddMatrix {
  float* out;
  const float* in;
  int64_t columns, in_stride;
  __device__ void operator()(int64_t e) const { out[e] += in[e / columns * in_stride + e % columns]; }
};

struct CopyMask {
  uint8_t* mask;
  const uint8_t* given;
  __device__ void operator()(int64_t i) const { mask[i] = given[i] != 0; }
};

struct ApplyMask {
  float* weight;
  const uint8_t* mask;
  __device__ void operator()(int64_t i) const {
    if (mask[i]) weight[i] = 0;
  }
};

struct SquareRoots {
  float* out;
  const float* in;
  __device__ void operator()(int64_t i) const { out[i] = sqrtf(in[i]); }
};

// --- the sweep --------------------------------------------------------------------------------------------------------

constexpr int sweep_warps = 4;
constexpr int sweep_threads = 32 * sweep_warps;
constexpr int weight_pitch = sweep_rows + 1;  // an odd pitch: rows and columns both meet every bank once
constexpr int mask_pitch = sweep_rows + 4;

struct alignas(16) Quad {
  float x, y, z, w;
};

// How the sweep learns what to prune.
enum SweepKind { by_mask = 0, by_any_group = -1 };  // > 0: groups of that many

// Marks the n smallest scores (w / U_jj)² of the group of m columns from `first` on, the leftmost of equal ones first.
template <int m_known>
__device__ inline void mark_group(unsigned& pruned, const float (&w)[sweep_strip], const float* tile, int first, int n,
                                  int m) {
  float scores[sweep_strip];
#pragma unroll
  for (int a = 0; a < (m_known > 0 ? m_known : m); ++a) {
    const float ratio = w[first + a] * (1.0f / tile[(first + a) * sweep_strip + first + a]);
    scores[a] = ratio * ratio;
  }
#pragma unroll
  for (int a = 0; a < (m_known > 0 ? m_known : m); ++a) {
    int rank = 0;
#pragma unroll
    for (int b = 0; b < (m_known > 0 ? m_known : m); ++b) rank += b < a ? scores[b] <= scores[a] : scores[b] < scores[a];
    if (rank < n) pruned |= 1u << (first + a);
  }
}

// The column loop over one strip of one row: prunes and rounds each column and moves its error to the columns right of it in
// the strip. In: w; out: w = q and the errors (w - q) / U_jj. Returns the sum of the squared errors.
template <int kind>
__device__ inline float sweep_one_strip(float (&w)[sweep_strip], float (&errors)[sweep_strip], unsigned& pruned,
                                        const float* tile, int count, const Sweep& s, float grid_scale, float grid_zero) {
  float squares = 0;
#pragma unroll
  for (int i = 0; i < sweep_strip; ++i) {
    errors[i] = 0;
    if (i >= count) continue;
    if constexpr (kind > 0) {
      if (i % kind == 0) mark_group<kind>(pruned, w, tile, i, s.n, kind);
    } else if constexpr (kind == by_any_group) {
      if (i % s.m == 0) mark_group<0>(pruned, w, tile, i, s.n, s.m);
    }
    float u[sweep_strip];
#pragma unroll
    for (int j = i / 4 * 4; j < sweep_strip; j += 4) {
      const Quad quad = *reinterpret_cast<const Quad*>(tile + i * sweep_strip + j);
      u[j] = quad.x;
      u[j + 1] = quad.y;
      u[j + 2] = quad.z;
      u[j + 3] = quad.w;
    }
    const float value = w[i];
    float q = pruned >> i & 1u ? 0.0f : value;
    if (s.grid_scale != nullptr) {
      const float steps = rintf(q / grid_scale) + grid_zero;
      q = grid_scale * (fminf(fmaxf(steps, 0.0f), s.grid_max) - grid_zero);
    }
    const float error = (value - q) * (1.0f / u[i]);
    w[i] = q;
    errors[i] = error;
    squares += error * error;
#pragma unroll
    for (int j = i + 1; j < sweep_strip; ++j) w[j] -= error * u[j];
  }
  return squares;
}

// A block of threads takes sweep_rows rows, one to a lane, and holds their part of the weight and the packed factor in shared
// memory. All its warps go through a strip together, each for itself, so that the errors need no exchange; then each moves them
// to every fourth of the columns that follow.
template <int kind>
__global__ void __launch_bounds__(sweep_threads) sweep_kernel(Sweep s, int packed_floats) {
  auto* factor = reinterpret_cast<float*>(dynamic_shared());
  float* weights = factor + packed_floats;  // [columns][weight_pitch]
  auto* masks = reinterpret_cast<uint8_t*>(weights + sweep_columns * weight_pitch);  // [columns][mask_pitch]
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first_row = blockIdx.x * int64_t{sweep_rows};
  const int rows = static_cast<int>(min(int64_t{sweep_rows}, s.rows - first_row));
  const int size = s.size;

  for (int e = static_cast<int>(threadIdx.x); e < packed_floats / 4; e += sweep_threads)
    reinterpret_cast<Quad*>(factor)[e] = reinterpret_cast<const Quad*>(s.packed)[e];

  const bool by_threshold = kind == by_mask && s.chosen == nullptr;
  const Threshold threshold = by_threshold ? s.state->threshold : Threshold{};
  const unsigned long long quota = by_threshold ? s.quota[blockIdx.x] : 0;
  const auto key = [&](int r, int j) {
    const float ratio = weights[j * weight_pitch + r] / s.diagonal[j];
    return key_of(ratio * ratio);
  };
  for (int e = static_cast<int>(threadIdx.x); e < sweep_rows * size; e += sweep_threads) {
    const int r = e / size, j = e % size;
    weights[j * weight_pitch + r] = r < rows ? s.weight[(first_row + r) * s.stride + j] : 0.0f;
    bool chosen = false;
    if (kind == by_mask && r < rows) {
      if (by_threshold) {
        const uint32_t k = key(r, j);
        chosen = k < threshold.key || (k == threshold.key && quota == all_equal);
      } else {
        chosen = s.chosen[(first_row + r) * s.chosen_stride + j] != 0;
      }
    }
    masks[j * mask_pitch + r] = chosen;
  }
  if (quota != 0 && quota != all_equal) {
    take_ties(
        static_cast<unsigned>(rows * size), quota,
        [&](unsigned e) { return key(static_cast<int>(e) / size, static_cast<int>(e) % size) == threshold.key; },
        [&](unsigned e) { masks[static_cast<int>(e) % size * mask_pitch + static_cast<int>(e) / size] = 1; });
  }

  const bool rounds = s.grid_scale != nullptr && lane < rows;
  const float grid_scale = rounds ? s.grid_scale[first_row + lane] : 1.0f;
  const float grid_zero = rounds ? s.grid_zero[first_row + lane] : 0.0f;
  double loss = 0;
  float w[sweep_strip], errors[sweep_strip];
  const float* strip = factor;
  for (int s0 = 0; s0 < size; s0 += s.strip) {
    const int s1 = min(s0 + s.strip, size);
    __syncthreads();  // this strip's columns are up to date
    unsigned pruned = 0;
#pragma unroll
    for (int i = 0; i < sweep_strip; ++i) {
      const bool inside = s0 + i < s1;
      w[i] = inside ? weights[(s0 + i) * weight_pitch + lane] : 0.0f;
      if (kind == by_mask && inside && masks[(s0 + i) * mask_pitch + lane]) pruned |= 1u << i;
    }
    loss += sweep_one_strip<kind>(w, errors, pruned, strip, s1 - s0, s, grid_scale, grid_zero);

    const float* above = strip + sweep_strip * sweep_strip;
#pragma unroll 2
    for (int j = s1 + warp; j < size; j += sweep_warps) {
      const auto* column = reinterpret_cast<const Quad*>(above + (j - s1) * sweep_strip);
      float sum = 0;
#pragma unroll
      for (int i = 0; i < sweep_strip; i += 4) {
        const Quad u = column[i / 4];
        sum += errors[i] * u.x;
        sum += errors[i + 1] * u.y;
        sum += errors[i + 2] * u.z;
        sum += errors[i + 3] * u.w;
      }
      weights[j * weight_pitch + lane] -= sum;
    }
    __syncthreads();  // every warp has read the strip
    if (warp == 0) {
#pragma unroll
      for (int i = 0; i < sweep_strip; ++i) {
        if (s0 + i >= s1) continue;
        weights[(s0 + i) * weight_pitch + lane] = w[i];
        if (kind != by_mask) masks[(s0 + i) * mask_pitch + lane] = pruned >> i & 1u;
      }
    }
    strip += strip_size(size, s0, s.strip);
  }
  __syncthreads();

  for (int e = static_cast<int>(threadIdx.x); e < rows * size; e += sweep_threads) {
    const int r = e / size, j = e % size;
    const int64_t at = (first_row + r) * s.stride + j;
    const float q = weights[j * weight_pitch + r];
    s.weight[at] = q;
    s.error[at] -= q;
    s.mask[at] = masks[j * mask_pitch + r];
  }
  if (warp == 0) {
    for (int step = 16; step > 0; step /= 2) loss += __shfl_xor_sync(whole_warp, loss, step);
    if (lane == 0) s.losses[blockIdx.x] += loss;
  }
}

int packed_floats(int size, int strip) {
  int total = 0;
  for (int s0 = 0; s0 < size; s0 += strip) total += strip_size(size, s0, strip);
  return total;
}

}  // namespace

void find_non_finite(cudaStream_t stream, const float* matrix, int64_t rows, int64_t columns, bool upper, int64_t* bad_row) {
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(rows, 1 << 20)));
  launch("checking for NaN", find_non_finite_kernel, grid, dim3(block_threads), 0, stream, matrix, rows, columns, upper,
         bad_row);
}

void read_diagonal(cudaStream_t stream, const float* hessian, int64_t n, float* diagonal, uint8_t* dead, Diagonal* summary) {
  launch("factor_hessian", read_diagonal_kernel, dim3(1), dim3(1024), 0, stream, hessian, n, diagonal, dead, summary);
}

void mirror(cudaStream_t stream, float* matrix, int64_t n) {
  const auto tiles = static_cast<unsigned>((n + side - 1) / side);
  launch("factor_hessian", mirror_tile, dim3(tiles, std::min(tiles, 65535u)), dim3(side, tile_rows), 0, stream, matrix, n);
}

void reverse(cudaStream_t stream, float* data, int64_t count) {
  for_indices("factor_hessian", stream, count / 2, Reverse{data, count});
}

void set_reversed_diagonal(cudaStream_t stream, float* matrix, int64_t n, const float* diagonal, const Diagonal* summary,
                           double dampening) {
  for_indices("factor_hessian", stream, n, SetReversedDiagonal{matrix, n, diagonal, summary, dampening});
}

void check_diagonal(cudaStream_t stream, const float* matrix, int64_t n, int* info) {
  for_indices("factor_hessian", stream, n, CheckDiagonal{matrix, n, info});
}

void start_clock(cudaStream_t stream, double* stats, int64_t seconds_index) {
  launch("clock", start_clock_kernel, dim3(1), dim3(1), 0, stream, stats + seconds_index);
}

void finish_factor(cudaStream_t stream, double* stats, double dampening, int retries, const Diagonal* summary) {
  launch("factor_hessian", finish_factor_kernel, dim3(1), dim3(1), 0, stream, stats, dampening, retries, summary);
}

void finish_solve(cudaStream_t stream, double* stats, const double* losses, int64_t count, const unsigned long long* zeros) {
  launch("prune", finish_solve_kernel, dim3(1), dim3(block_threads), 0, stream, stats, losses, count, zeros);
}

int64_t packed_size(int64_t piece, int strip) { return packed_floats(static_cast<int>(piece), strip); }

void invert_pieces(cudaStream_t stream, const float* factor, const Pieces& pieces, int strip, float* inverse, float* packed,
                   float* inverse_diagonal) {
  const size_t shared = static_cast<size_t>(pieces.piece) * sweep_columns * sizeof(float);
  launch("prune_sparsegpt", invert_piece, dim3(static_cast<unsigned>(pieces.count())), dim3(sweep_columns), shared, stream,
         factor, pieces, strip, inverse, packed, packed_size(pieces.piece, strip), inverse_diagonal);
}

void make_grid(cudaStream_t stream, const float* weight, int64_t rows, int64_t columns, int bits, float* scale,
               float* zero) {
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(rows, 1 << 20)));
  launch("prune_sparsegpt", make_grid_kernel, grid, dim3(block_threads), 0, stream, weight, rows, columns,
         static_cast<float>((1 << bits) - 1), scale, zero);
}

void zero_dead(cudaStream_t stream, float* weight, int64_t rows, int64_t columns, const uint8_t* dead) {
  for_indices("prune_sparsegpt", stream, rows * columns, ZeroDead{weight, columns, dead});
}

void add_matrix(cudaStream_t stream, float* out, const float* in, int64_t rows, int64_t columns, int64_t in_stride) {
  for_indices("prune_sparsegpt", stream, rows * columns, AddMatrix{out, in, columns, in_stride});
}

void sweep(cudaStream_t stream, const Sweep& s) {
  const int floats = packed_floats(s.size, s.strip);
  const size_t shared = static_cast<size_t>(floats) * sizeof(float) +
                        sweep_columns * (weight_pitch * sizeof(float) + mask_pitch * sizeof(uint8_t));
  const dim3 grid(static_cast<unsigned>((s.rows + sweep_rows - 1) / sweep_rows));
  const auto run = [&](auto kernel) {
    launch("prune_sparsegpt", kernel, grid, dim3(sweep_threads), shared, stream, s, floats);
  };
  if (s.m == 0) {
    run(sweep_kernel<by_mask>);
  } else if (s.m == 2) {
    run(sweep_kernel<2>);
  } else if (s.m == 4) {
    run(sweep_kernel<4>);
  } else if (s.m == 8) {
    run(sweep_kernel<8>);
  } else {
    run(sweep_kernel<by_any_group>);
  }
}

void copy_mask(cudaStream_t stream, uint8_t* mask, const uint8_t* given, int64_t count) {
  for_indices("prune", stream, count, CopyMask{mask, given});
}

void apply_mask(cudaStream_t stream, float* weight, const uint8_t* mask, int64_t count) {
  for_indices("prune", stream, count, ApplyMask{weight, mask});
}

void square_roots(cudaStream_t stream, float* out, const float* in, int64_t count) {
  for_indices("prune_wanda", stream, count, SquareRoots{out, in});
}

}  // namespace sparsegpt::cuda
