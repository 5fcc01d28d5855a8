// The operations of a forward pass other than products and attention. They are bound by memory: each element is read and
// written once, consecutive threads take consecutive columns.
#include <algorithm>

#include "cuda/element.cuh"

namespace sparsegpt::cuda {

namespace {

constexpr int block_threads = 256;

// Calls f(row, column) for every element of [rows, columns].
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

// One block of threads for each row, or for some rows in turn.
dim3 grid_of_rows(int64_t rows) { return dim3(static_cast<unsigned>(std::min<int64_t>(rows, 1 << 20))); }

// --- elementwise ------------------------------------------------------------------------------------------------------

__device__ float apply(float x, Activation kind) {
  switch (kind) {
    case Activation::relu: return 0.0f > x ? 0.0f : x;  // in this order NaN stays NaN
    case Activation::gelu: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case Activation::gelu_tanh:
      // x / 2 · (1 + tanh u) = x / (1 + exp(-2u)), which keeps its accuracy where tanh u nears -1.
      return x / (1.0f + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
    case Activation::silu: return x / (1.0f + expf(-x));
  }
  return x;
}

struct Cast {
  View out, in;
  __device__ void operator()(int64_t i, int64_t j) const { write(out, i, j, read(in, i, j)); }
};

struct Fill {
  View out;
  double value;
  __device__ void operator()(int64_t i, int64_t j) const {
    if (out.dtype == DType::f64) {
      row_of<double>(out, i)[j] = value;
    } else {
      write(out, i, j, static_cast<float>(value));
    }
  }
};

struct SetRows {
  View out, row;
  __device__ void operator()(int64_t i, int64_t j) const { write(out, i, j, read(row, 0, j)); }
};

// Position and id of what is no row of a table, in one number that grows with the position.
__device__ int64_t position_and_id(int64_t position, int32_t id) {
  return position << 32 | static_cast<int64_t>(static_cast<uint32_t>(id));
}

struct Embedding {
  View out, table;
  const int32_t* ids;
  int64_t* bad_position;
  __device__ void operator()(int64_t t, int64_t j) const {
    const int32_t id = ids[t];
    const bool known = id >= 0 && id < table.rows;
    if (!known && j == 0) report(bad_position, position_and_id(t, id));
    write(out, t, j, known ? read(table, id, j) : 0.0f);
  }
};

struct Activate {
  View x;
  Activation kind;
  __device__ void operator()(int64_t i, int64_t j) const { write(x, i, j, apply(read(x, i, j), kind)); }
};

struct Gate {
  View x, up;
  Activation kind;
  __device__ void operator()(int64_t i, int64_t j) const { write(x, i, j, apply(read(x, i, j), kind) * read(up, i, j)); }
};

struct Add {
  View x, y;
  __device__ void operator()(int64_t i, int64_t j) const { write(x, i, j, read(x, i, j) + read(y, i, j)); }
};

struct Scale {
  View x;
  float factor;
  __device__ void operator()(int64_t i, int64_t j) const { write(x, i, j, read(x, i, j) * factor); }
};

struct Softcap {
  View x;
  float cap;
  __device__ void operator()(int64_t i, int64_t j) const { write(x, i, j, cap * tanhf(read(x, i, j) / cap)); }
};

struct TakeColumns {
  View out, x;
  int64_t first, count, stride;
  __device__ void operator()(int64_t t, int64_t j) const {
    write(out, t, j, read(x, t, j / count * stride + first + j % count));
  }
};

struct ScatterAdd {
  View out, x;
  const int32_t* ids;
  const float* factors;
  int64_t* bad_position;
  __device__ void operator()(int64_t t, int64_t j) const {
    const int32_t id = ids[t];
    if (id >= 0 && id < out.rows) {
      write(out, id, j, read(out, id, j) + factors[t] * read(x, t, j));
    } else if (j == 0) {
      report(bad_position, position_and_id(t, id));
    }
  }
};

// For pair i of head h of token t; column = h · half + i.
struct Rotary {
  View x, cosine, sine;
  int64_t head_dim, half;
  bool interleaved;
  __device__ void operator()(int64_t t, int64_t column) const {
    const int64_t head = column / half, i = column % half, position = t % cosine.rows;
    const int64_t first = head * head_dim + (interleaved ? 2 * i : i), second = first + (interleaved ? 1 : half);
    const float a = read(x, t, first), b = read(x, t, second);
    const float c = read(cosine, position, i), s = read(sine, position, i);
    write(x, t, first, a * c - b * s);
    write(x, t, second, b * c + a * s);
  }
};

// --- transpose --------------------------------------------------------------------------------------------------------

constexpr int side = 32, tile_rows = 8;

// Through shared memory, so that both sides are accessed along rows; the extra column keeps the banks apart.
__global__ void transpose_tile(View out, View in) {
  __shared__ float tile[side][side + 1];
  const int64_t j0 = blockIdx.x * int64_t{side};
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  for (int64_t i0 = blockIdx.y * int64_t{side}; i0 < in.rows; i0 += int64_t{gridDim.y} * side) {
    for (int r = y; r < side; r += tile_rows)
      if (i0 + r < in.rows && j0 + x < in.columns) tile[r][x] = read(in, i0 + r, j0 + x);
    __syncthreads();
    for (int r = y; r < side; r += tile_rows)
      if (j0 + r < in.columns && i0 + x < in.rows) write(out, j0 + r, i0 + x, tile[x][r]);
    __syncthreads();
  }
}

// --- norms ------------------------------------------------------------------------------------------------------------

__global__ void norm_row(View out, View x, const float* weight, const float* bias, bool centred, float eps) {
  const auto count = static_cast<float>(x.columns);
  for (int64_t i = blockIdx.x; i < x.rows; i += gridDim.x) {
    float mean = 0;
    if (centred) {
      float sum = 0;
      for (int64_t j = threadIdx.x; j < x.columns; j += blockDim.x) sum += read(x, i, j);
      mean = combine_block(sum, Sum()) / count;
    }
    float squares = 0;
    for (int64_t j = threadIdx.x; j < x.columns; j += blockDim.x) {
      const float v = read(x, i, j) - mean;
      squares += v * v;
    }
    const float factor = 1.0f / sqrtf(combine_block(squares, Sum()) / count + eps);
    for (int64_t j = threadIdx.x; j < x.columns; j += blockDim.x) {
      const float y = (read(x, i, j) - mean) * factor * weight[j];
      write(out, i, j, bias != nullptr ? y + bias[j] : y);
    }
  }
}

// --- sums over tokens -------------------------------------------------------------------------------------------------

// A block sums 32 columns, each by 32 threads.
__global__ void sum_squares(float* sums, View x, float factor) {
  __shared__ float parts[side][side + 1];
  const int64_t j = blockIdx.x * int64_t{side} + threadIdx.x;
  float sum = 0;
  if (j < x.columns) {
    for (int64_t t = threadIdx.y; t < x.rows; t += side) {
      const float v = read(x, t, j);
      sum += v * v;
    }
  }
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || j >= x.columns) return;
  for (int r = 1; r < side; ++r) sum += parts[r][threadIdx.x];
  sums[j] += factor * sum;
}

// --- losses -----------------------------------------------------------------------------------------------------------

__device__ float final_logit(const View& logits, int64_t t, int64_t w, const float* bias, float cap) {
  float x = read(logits, t, w);
  if (bias != nullptr) x += bias[w];
  return cap > 0 ? cap * tanhf(x / cap) : x;
}

__global__ void start_losses_kernel(RunningLoss* running, int64_t tokens, const int32_t* targets, int64_t words,
                                    int64_t* bad_position) {
  const int64_t t = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (t >= tokens) return;
  running[t] = {-INFINITY, 0.0f, 0.0};
  if (targets[t] < 0 || targets[t] >= words) report(bad_position, position_and_id(t, targets[t]));
}

__global__ void extend_loss(RunningLoss* running, View logits, const float* bias, float cap, const int32_t* targets,
                            int64_t first_word) {
  for (int64_t t = blockIdx.x; t < logits.rows; t += gridDim.x) {
    float largest = -INFINITY;
    for (int64_t w = threadIdx.x; w < logits.columns; w += blockDim.x)
      largest = fmaxf(largest, final_logit(logits, t, w, bias, cap));
    largest = combine_block(largest, Largest());
    float sum = 0;
    for (int64_t w = threadIdx.x; w < logits.columns; w += blockDim.x)
      sum += expf(final_logit(logits, t, w, bias, cap) - largest);
    const double total = combine_block(static_cast<double>(sum), Sum());
    if (threadIdx.x == 0) {
      RunningLoss r = running[t];
      const float top = fmaxf(largest, r.largest);
      r.sum = r.sum * exp(static_cast<double>(r.largest) - top) + total * exp(static_cast<double>(largest) - top);
      r.largest = top;
      const int64_t wanted = targets[t] - first_word;
      if (wanted >= 0 && wanted < logits.columns) r.wanted = final_logit(logits, t, wanted, bias, cap);
      running[t] = r;
    }
  }
}

__global__ void finish_losses_kernel(float* losses, const RunningLoss* running, int64_t tokens) {
  const int64_t t = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (t < tokens) losses[t] = static_cast<float>(running[t].largest + log(running[t].sum) - running[t].wanted);
}

// --- zeros ------------------------------------------------------------------------------------------------------------

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

__global__ void finish_zeros_kernel(double* stats, const unsigned long long* counts, const int32_t* patterns,
                                    int64_t pattern_count, int64_t columns) {
  stats[0] = static_cast<double>(counts[0]);
  for (int64_t p = 0; p < pattern_count; ++p)
    stats[1 + p] = columns % patterns[2 * p + 1] == 0 && counts[1 + p] == 0 ? 1.0 : 0.0;
}

}  // namespace

void cast(cudaStream_t stream, const View& out, const View& in) {
  for_elements("cast", stream, in.rows, in.columns, Cast{out, in});
}

void transpose(cudaStream_t stream, const View& out, const View& in) {
  if (in.rows == 0 || in.columns == 0) return;
  const dim3 grid(static_cast<unsigned>((in.columns + side - 1) / side),
                  static_cast<unsigned>(std::min<int64_t>((in.rows + side - 1) / side, 65535)));
  launch("transpose", transpose_tile, grid, dim3(side, tile_rows), 0, stream, out, in);
}

void fill(cudaStream_t stream, const View& out, double value) {
  for_elements("fill", stream, out.rows, out.columns, Fill{out, value});
}

void set_rows(cudaStream_t stream, const View& out, const View& row) {
  for_elements("linear", stream, out.rows, out.columns, SetRows{out, row});
}

void embedding(cudaStream_t stream, const View& out, const View& table, const int32_t* ids, int64_t* bad_position) {
  for_elements("embedding", stream, out.rows, out.columns, Embedding{out, table, ids, bad_position});
}

void layer_norm(cudaStream_t stream, const View& out, const View& x, const float* weight, const float* bias, float eps) {
  launch("layer_norm", norm_row, grid_of_rows(x.rows), dim3(block_threads), 0, stream, out, x, weight, bias, true, eps);
}

void rms_norm(cudaStream_t stream, const View& out, const View& x, const float* weight, float eps) {
  launch("rms_norm", norm_row, grid_of_rows(x.rows), dim3(block_threads), 0, stream, out, x, weight, nullptr, false, eps);
}

void rotary(cudaStream_t stream, const View& x, const View& cosine, const View& sine, int64_t head_dim, bool interleaved) {
  for_elements("rotary", stream, x.rows, x.columns / head_dim * cosine.columns,
               Rotary{x, cosine, sine, head_dim, cosine.columns, interleaved});
}

void activation(cudaStream_t stream, const View& x, Activation kind) {
  for_elements("activation", stream, x.rows, x.columns, Activate{x, kind});
}

void gate(cudaStream_t stream, const View& x, const View& up, Activation kind) {
  for_elements("gate", stream, x.rows, x.columns, Gate{x, up, kind});
}

void add(cudaStream_t stream, const View& x, const View& y) { for_elements("add", stream, x.rows, x.columns, Add{x, y}); }

void scale(cudaStream_t stream, const View& x, float factor) {
  for_elements("scale", stream, x.rows, x.columns, Scale{x, factor});
}

void softcap(cudaStream_t stream, const View& x, float cap) {
  for_elements("softcap", stream, x.rows, x.columns, Softcap{x, cap});
}

void take_columns(cudaStream_t stream, const View& out, const View& x, int64_t first, int64_t count, int64_t stride) {
  for_elements("take_columns", stream, out.rows, out.columns, TakeColumns{out, x, first, count, stride});
}

void scatter_add(cudaStream_t stream, const View& out, const View& x, const int32_t* ids, const float* factors,
                 int64_t* bad_position) {
  for_elements("scatter_add", stream, x.rows, x.columns, ScatterAdd{out, x, ids, factors, bad_position});
}

void accumulate_squares(cudaStream_t stream, float* sums, const View& x, float scale) {
  const dim3 grid(static_cast<unsigned>((x.columns + side - 1) / side));
  launch("accumulate_squares", sum_squares, grid, dim3(side, side), 0, stream, sums, x, scale);
}

void start_losses(cudaStream_t stream, RunningLoss* running, int64_t tokens, const int32_t* targets, int64_t words,
                  int64_t* bad_position) {
  const dim3 grid(static_cast<unsigned>((tokens + block_threads - 1) / block_threads));
  launch("cross_entropy", start_losses_kernel, grid, dim3(block_threads), 0, stream, running, tokens, targets, words,
         bad_position);
}

void extend_losses(cudaStream_t stream, RunningLoss* running, const View& logits, const float* bias, float softcap,
                   const int32_t* targets, int64_t first_word) {
  launch("cross_entropy", extend_loss, grid_of_rows(logits.rows), dim3(block_threads), 0, stream, running, logits, bias,
         softcap, targets, first_word);
}

void finish_losses(cudaStream_t stream, float* losses, const RunningLoss* running, int64_t tokens) {
  const dim3 grid(static_cast<unsigned>((tokens + block_threads - 1) / block_threads));
  launch("cross_entropy", finish_losses_kernel, grid, dim3(block_threads), 0, stream, losses, running, tokens);
}

void count_zeros(cudaStream_t stream, unsigned long long* counts, const View& tensor, const int32_t* patterns,
                 int64_t pattern_count) {
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(tensor.rows, 4096)));
  launch("count_zeros", count_row_zeros, grid, dim3(block_threads), 0, stream, counts, tensor, patterns, pattern_count);
}

void finish_zeros(cudaStream_t stream, double* stats, const unsigned long long* counts, const int32_t* patterns,
                  int64_t pattern_count, int64_t columns) {
  launch("count_zeros", finish_zeros_kernel, dim3(1), dim3(1), 0, stream, stats, counts, patterns, pattern_count, columns);
}

}  // namespace sparsegpt::cuda
