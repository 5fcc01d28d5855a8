// The gradients of attention, fused like it (Dao et al. 2022, arXiv 2205.14135). With P = softmax(S), S = q kᵀ scaled, capped and
// biased, and D = the sum over the keys of P · dP:
//   dP = dout vᵀ;  dS = P · (dP - D), times the cap's derivative;  dq = scale dS k;  dk = scale dSᵀ q;  dv = Pᵀ dout.
// One kernel per part, in which a block of threads has rows of its own and walks over the others: the statistics of a query's
// probabilities and dq have queries and walk over the keys they see, dk and dv have keys and walk over the queries that see them,
// of all heads that share the key head. Each forms S and dP of two tiles once more, so no matrix of scores exists, and no two
// blocks add to one sum.
#include "cuda/attention.cuh"
#include "cuda/cuda_backend.h"
#include "cuda/sizes.h"

namespace sparsegpt::cuda {

namespace {

enum class Part { statistics, dq, dk, dv };
template <Part part>
constexpr bool by_keys = part == Part::dk || part == Part::dv;

// `out` is what the part makes, of the statistics nothing.
struct GradientArguments : AttentionArguments {
  const void* dout;
  int64_t dout_stride;
  // Of every query in every head, rows `statistics_stride` apart: log Σ exp(S), and D.
  float *log_sums, *means;
  float* dsinks;  // [queries, heads], rows dsinks_stride apart, or null
  int64_t dsinks_stride;
  int64_t statistics_stride;
  unsigned* largest_slope;  // the bits of the largest |dP|
};

// --- what the parts share ---------------------------------------------------------------------------------------------

// Rows of one head in one sequence: of q and dout, or of k and v. The first make scores; [available, head_dim].
template <typename T>
struct Side {
  const T *scored, *mixed;
  int64_t scored_stride, mixed_stride, available;
};

template <typename T>
__device__ Side<T> side_of(const void* scored, int64_t scored_stride, const void* mixed, int64_t mixed_stride, int64_t row,
                           int64_t column, int64_t available) {
  return {static_cast<const T*>(scored) + row * scored_stride + column,
          static_cast<const T*>(mixed) + row * mixed_stride + column, scored_stride, mixed_stride, available};
}
template <typename T>
__device__ Side<T> queries_of(const GradientArguments& a, int64_t head) {
  return side_of<T>(a.q, a.q_stride, a.dout, a.dout_stride, blockIdx.z * a.queries, head * a.head_dim, a.queries);
}
// Those that some query may see.
template <typename T>
__device__ Side<T> keys_of(const GradientArguments& a, int64_t kv_head) {
  return side_of<T>(a.k, a.k_stride, a.v, a.v_stride, blockIdx.z * a.keys, kv_head * a.head_dim, a.start + a.queries);
}

template <typename T, int padded, int rows>
__device__ void load_side(T* scored, T* mixed, int pitch, const Side<T>& side, int64_t first, const AttentionArguments& a) {
  const int64_t available = side.available - first;
  load_rows<T, padded, rows>(scored, pitch, side.scored + first * side.scored_stride, side.scored_stride, available, a);
  load_rows<T, padded, rows>(mixed, pitch, side.mixed + first * side.mixed_stride, side.mixed_stride, available, a);
}

// What a block has to do: its first row, the key head, the query heads one after the other, and the rows that it walks over, of
// keys from the start of a tile.
struct Walk {
  int64_t first, kv_head, head, end_of_heads, begin, end;
};
template <Part part, int tile>
__device__ Walk walk_of(const GradientArguments& a, int rows) {
  Walk w;
  if constexpr (by_keys<part>) {
    // The first keys are seen by the most queries, the last queries see the most keys: they go first.
    w.first = blockIdx.x * int64_t{rows};
    w.kv_head = blockIdx.y;
    w.head = w.kv_head * a.group;
    w.end_of_heads = w.head + a.group;
    w.begin = max(int64_t{0}, w.first - a.start);
    w.end = a.window > 0 ? min(a.queries, w.first + rows - 1 + a.window - a.start) : a.queries;
  } else {
    w.first = (gridDim.x - 1 - blockIdx.x) * int64_t{rows};
    w.kv_head = blockIdx.y / a.group;
    w.head = blockIdx.y;
    w.end_of_heads = w.head + 1;
    w.begin = first_key<tile>(a, w.first);
    w.end = end_of_keys(a, w.first + rows);
  }
  return w;
}

struct Statistics {
  float log_sum, mean;
};
// A query that does not exist sees nothing.
__device__ Statistics statistics_of(const GradientArguments& a, int64_t head, int64_t query) {
  if (query >= a.queries) return {INFINITY, 0.0f};
  const int64_t at = head * a.statistics_stride + blockIdx.z * a.queries + query;
  return {a.log_sums[at], a.means[at]};
}

// Makes a product q · k its probability, and the probability's gradient that of the score before the cap.
__device__ void differentiate(const AttentionArguments& a, float& score, float& slope, const Statistics& s, float bias,
                              int64_t place, int64_t key) {
  if (!sees(a, place, key)) {
    score = slope = 0;
    return;
  }
  const float x = capped(a, score), relative = a.softcap > 0 ? x / a.softcap : 0.0f;
  score = expf(x + bias * static_cast<float>(key - place) - s.log_sum);
  slope = score * (slope - s.mean) * (1.0f - relative * relative);
}

// What a thread has seen of a query's scores: Σ exp(score - largest), and that times dP.
struct Seen {
  float largest = -INFINITY, sum = 0, products = 0;
};

// What is seen before any key: by one of the threads that see parts of the query, the head's sink, whose slope is zero.
__device__ Seen seen_before(const AttentionArguments& a, int64_t head, bool counts) {
  Seen seen;
  if (a.sinks == nullptr || !counts) return seen;
  seen.largest = a.sinks[head];
  seen.sum = 1;
  return seen;
}

// Scores are -∞ where nothing is seen, slopes zero there.
template <int count>
__device__ void take_in(Seen& seen, const float (&score)[count], const float (&slope)[count]) {
  float top = seen.largest;
#pragma unroll
  for (int i = 0; i < count; ++i) top = fmaxf(top, score[i]);
  const float base = top == -INFINITY ? 0.0f : top, shrink = expf(seen.largest - base);
  seen.largest = top;
  seen.sum *= shrink;
  seen.products *= shrink;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const float e = expf(score[i] - base);
    seen.sum += e;
    seen.products += e * slope[i];
  }
}

// Of what `combine` makes of the values of all threads that have seen parts of the query.
template <typename Combine>
__device__ Statistics conclude(const Seen& seen, const Combine& combine) {
  const float top = combine(seen.largest, Largest()), shrink = expf(seen.largest - top);
  const float sum = combine(seen.sum * shrink, Sum()), products = combine(seen.products * shrink, Sum());
  return {top + logf(sum), products / sum};
}

// Of `lanes` neighbouring threads.
template <int lanes>
struct CombineLanes {
  template <typename Operation>
  __device__ float operator()(float value, Operation operation) const {
#pragma unroll
    for (int step = 1; step < lanes; step *= 2) value = operation(value, __shfl_xor_sync(whole_warp, value, step));
    return value;
  }
};

__device__ void store_statistics(const GradientArguments& a, int64_t head, int64_t query, const Statistics& s) {
  if (query >= a.queries) return;
  const int64_t at = head * a.statistics_stride + blockIdx.z * a.queries + query;
  a.log_sums[at] = s.log_sum;
  a.means[at] = s.mean;
  if (a.dsinks == nullptr) return;
  a.dsinks[(blockIdx.z * a.queries + query) * a.dsinks_stride + head] = -expf(a.sinks[head] - s.log_sum) * s.mean;
}

// The rows of what a part makes: all, those that nobody sees are zero.
template <Part part>
__device__ int64_t rows_of(const GradientArguments& a) {
  return by_keys<part> ? a.keys : a.queries;
}
template <typename T, Part part>
__device__ T* output_row(const GradientArguments& a, int64_t row) {
  return static_cast<T*>(a.out) + (blockIdx.z * rows_of<part>(a) + row) * a.out_stride + int64_t{blockIdx.y} * a.head_dim;
}
template <Part part>
__device__ float output_scale(const AttentionArguments& a) {
  return part == Part::dv ? 1.0f : a.scale;
}

// --- bfloat16 and float16 ---------------------------------------------------------------------------------------------

// A power of two that brings gradients up to twice `largest` into the range of float16, where small ones keep their accuracy.
__device__ float unit_of(float largest) {
  int exponent = 0;
  frexpf(largest, &exponent);
  return ldexpf(1.0f, min(14 - exponent, 100));
}

constexpr int half_rows = 64;  // of a block
template <int padded>
constexpr int half_others = padded > 128  ? 16
                            : padded > 64 ? 32
                                          : 64;
template <int padded>
constexpr size_t half_gradient_shared =
    2 * (half_rows + half_others<padded>)*(padded + 8) * sizeof(uint16_t) + half_others<padded> * sizeof(Statistics);

template <bool bf16, int padded, Part part>
__global__ void __launch_bounds__(attention_threads) gradient_half(GradientArguments a) {
  constexpr int others = half_others<padded>, pitch = padded + 8, columns = part == Part::statistics ? 1 : padded / 8;
  auto* own_scored = reinterpret_cast<uint16_t*>(dynamic_shared());
  uint16_t* own_mixed = own_scored + half_rows * pitch;
  uint16_t* other_scored = own_mixed + half_rows * pitch;
  uint16_t* other_mixed = other_scored + others * pitch;
  auto* other_statistics = reinterpret_cast<Statistics*>(other_mixed + others * pitch);

  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4, warp_rows = warp * 16 * pitch;
  const Walk walk = walk_of<part, others>(a, half_rows);
  const Side<uint16_t> keys = keys_of<uint16_t>(a, walk.kv_head);
  const int64_t row[2] = {walk.first + warp * 16 + g, walk.first + warp * 16 + g + 8};
  const float unit = part == Part::dq || part == Part::dk ? unit_of(__uint_as_float(*a.largest_slope)) : 1.0f;
  float out[columns][4] = {};
  Seen seen[2] = {seen_before(a, walk.head, t == 0), seen_before(a, walk.head, t == 0)};
  float largest_slope = 0;

  for (int64_t head = walk.head; head < walk.end_of_heads; ++head) {
    const Side<uint16_t> queries = queries_of<uint16_t>(a, head);
    const Side<uint16_t>&own = by_keys<part> ? keys : queries, &other = by_keys<part> ? queries : keys;
    const float bias = a.slopes != nullptr ? a.slopes[head] : 0.0f;
    if (head == walk.head) load_side<uint16_t, padded, half_rows>(own_scored, own_mixed, pitch, own, walk.first, a);
    Statistics mine[2];
    if constexpr (part == Part::dq) {
      mine[0] = statistics_of(a, head, row[0]);
      mine[1] = statistics_of(a, head, row[1]);
    }
    for (int64_t at = walk.begin; at < walk.end; at += others) {
      __syncthreads();  // the tiles of the last round have been read
      load_side<uint16_t, padded, others>(other_scored, other_mixed, pitch, other, at, a);
      if constexpr (by_keys<part>)
        if (threadIdx.x < others) other_statistics[threadIdx.x] = statistics_of(a, head, at + threadIdx.x);
      __syncthreads();

      float score[others / 8][4] = {}, slope[others / 8][4] = {};
      multiply_rows<bf16, padded>(score, own_scored + warp_rows, other_scored, pitch);
      if constexpr (part != Part::dv) multiply_rows<bf16, padded>(slope, own_mixed + warp_rows, other_mixed, pitch);

#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if constexpr (part == Part::statistics) {
          float x[others / 4], dx[others / 4];
#pragma unroll
          for (int i = 0; i < others / 4; ++i) {
            x[i] = adjusted(a, score[i / 2][2 * r + i % 2], bias, a.start + row[r], at + i / 2 * 8 + 2 * t + i % 2);
            dx[i] = x[i] == -INFINITY ? 0.0f : slope[i / 2][2 * r + i % 2];
            largest_slope = fmaxf(largest_slope, fabsf(dx[i]));
          }
          take_in(seen[r], x, dx);
        } else {
#pragma unroll
          for (int i = 0; i < others / 4; ++i) {
            const int place = i / 2 * 8 + 2 * t + i % 2;
            float &x = score[i / 2][2 * r + i % 2], &dx = slope[i / 2][2 * r + i % 2];
            if constexpr (by_keys<part>) {
              differentiate(a, x, dx, other_statistics[place], bias, a.start + at + place, row[r]);
            } else {
              differentiate(a, x, dx, mine[r], bias, a.start + row[r], at + place);
            }
            dx *= unit;
          }
        }
      }
      if constexpr (part == Part::dv) {
        multiply_columns<bf16>(out, score, other_mixed, pitch);
      } else if constexpr (part != Part::statistics) {
        multiply_columns<bf16>(out, slope, other_scored, pitch);
      }
    }
  }

  if constexpr (part == Part::statistics) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // The four threads of a quad hold one row.
      const Statistics s = conclude(seen[r], CombineLanes<4>());
      if (t == 0) store_statistics(a, walk.head, row[r], s);
    }
    const float largest = combine_block(largest_slope, Largest());
    if (threadIdx.x == 0) atomicMax(a.largest_slope, __float_as_uint(largest));
  } else {
    const float factor = output_scale<part>(a) / unit;
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (row[r] < rows_of<part>(a)) store_row<bf16>(output_row<uint16_t, part>(a, row[r]), out, r, factor, a.head_dim);
  }
}

// --- float32 ----------------------------------------------------------------------------------------------------------

template <int padded>
constexpr int float_rows = padded > 128  ? 16
                           : padded > 64 ? 32
                                         : 64;  // of a block
template <int padded>
constexpr int float_others = padded > 128 ? 16 : 32;
template <int padded>
constexpr size_t float_gradient_shared =
    (2 * (float_rows<padded> + float_others<padded>)*(padded + 4) + float_rows<padded> * (float_others<padded> + 4)) *
        sizeof(float) +
    float_others<padded> * sizeof(Statistics);

template <int padded, Part part>
__global__ void __launch_bounds__(attention_threads) gradient_float(GradientArguments a) {
  constexpr int rows = float_rows<padded>, mine = rows / 16, others = float_others<padded>, columns = others / 8;
  constexpr int pitch = padded + 4, weight_pitch = others + 4;
  auto* own_scored = reinterpret_cast<float*>(dynamic_shared());
  float* own_mixed = own_scored + rows * pitch;
  float* other_scored = own_mixed + rows * pitch;
  float* other_mixed = other_scored + others * pitch;
  float* weights = other_mixed + others * pitch;  // [rows, others]
  auto* other_statistics = reinterpret_cast<Statistics*>(weights + rows * weight_pitch);

  const int across = static_cast<int>(threadIdx.x) % 8, down = static_cast<int>(threadIdx.x) / 8 * mine;
  const Walk walk = walk_of<part, others>(a, rows);
  const Side<float> keys = keys_of<float>(a, walk.kv_head);
  const int64_t row = walk.first + down;  // the first of this thread's
  float4 out[mine][padded / 32];
#pragma unroll
  for (int r = 0; r < mine; ++r)
#pragma unroll
    for (int c = 0; c < padded / 32; ++c) out[r][c] = make_float4(0, 0, 0, 0);
  Seen seen[mine];
#pragma unroll
  for (int r = 0; r < mine; ++r) seen[r] = seen_before(a, walk.head, across == 0);

  for (int64_t head = walk.head; head < walk.end_of_heads; ++head) {
    const Side<float> queries = queries_of<float>(a, head);
    const Side<float>&own = by_keys<part> ? keys : queries, &other = by_keys<part> ? queries : keys;
    const float bias = a.slopes != nullptr ? a.slopes[head] : 0.0f;
    if (head == walk.head) load_side<float, padded, rows>(own_scored, own_mixed, pitch, own, walk.first, a);
    for (int64_t at = walk.begin; at < walk.end; at += others) {
      __syncthreads();  // the tiles of the last round have been read
      load_side<float, padded, others>(other_scored, other_mixed, pitch, other, at, a);
      if constexpr (by_keys<part>)
        if (threadIdx.x < others) other_statistics[threadIdx.x] = statistics_of(a, head, at + threadIdx.x);
      __syncthreads();

      float score[mine][columns] = {}, slope[mine][columns] = {};
      multiply_rows<padded>(score, own_scored + down * pitch, other_scored + across * pitch, pitch);
      if constexpr (part != Part::dv)
        multiply_rows<padded>(slope, own_mixed + down * pitch, other_mixed + across * pitch, pitch);

#pragma unroll
      for (int r = 0; r < mine; ++r) {
        if constexpr (part == Part::statistics) {
#pragma unroll
          for (int c = 0; c < columns; ++c) {
            score[r][c] = adjusted(a, score[r][c], bias, a.start + row + r, at + across + 8 * c);
            if (score[r][c] == -INFINITY) slope[r][c] = 0;
          }
          take_in(seen[r], score[r], slope[r]);
        } else {
          Statistics s;
          if constexpr (part == Part::dq) s = statistics_of(a, head, row + r);
#pragma unroll
          for (int c = 0; c < columns; ++c) {
            const int place = across + 8 * c;
            if constexpr (by_keys<part>) {
              differentiate(a, score[r][c], slope[r][c], other_statistics[place], bias, a.start + at + place, row + r);
            } else {
              differentiate(a, score[r][c], slope[r][c], s, bias, a.start + row + r, at + place);
            }
            weights[(down + r) * weight_pitch + place] = part == Part::dv ? score[r][c] : slope[r][c];
          }
        }
      }
      if constexpr (part != Part::statistics) {
        __syncthreads();
        multiply_columns<others>(out, weights + down * weight_pitch, weight_pitch,
                                 (part == Part::dv ? other_mixed : other_scored) + across * 4, pitch);
      }
    }
  }

#pragma unroll
  for (int r = 0; r < mine; ++r) {
    if constexpr (part == Part::statistics) {
      const Statistics s = conclude(seen[r], CombineLanes<8>());
      if (across == 0) store_statistics(a, walk.head, row + r, s);
    } else {
      if (row + r < rows_of<part>(a))
        store_row(output_row<float, part>(a, row + r), out[r], across * 4, output_scale<part>(a), a.head_dim);
    }
  }
}

// --- heads of any size ------------------------------------------------------------------------------------------------

struct CombineBlock {
  template <typename Operation>
  __device__ float operator()(float value, Operation operation) const {
    return combine_block(value, operation);
  }
};

// A block of threads for each row, whose sums are in shared memory. Slow: for the few models with wider heads.
template <Part part>
__global__ void __launch_bounds__(attention_threads) gradient_wide(GradientArguments a, DType dtype) {
  const int head_dim = a.head_dim;
  auto* weights = reinterpret_cast<float*>(dynamic_shared());  // of `attention_threads` others
  float* own_scored = weights + attention_threads;  // [head_dim]
  float* own_mixed = own_scored + head_dim;  // [head_dim]
  float* sums = own_mixed + head_dim;  // [head_dim]
  const Walk walk = walk_of<part, 1>(a, 1);
  struct Reader {
    View all;
    int64_t row, column;
    __device__ float operator()(int64_t i, int d) const { return read(all, row + i, column + d); }
  };
  const auto reader = [&](const void* data, int64_t stride, int64_t rows, int64_t head) {
    return Reader{{const_cast<void*>(data), dtype, 0, 0, stride}, blockIdx.z * rows, head * head_dim};
  };
  const Reader k = reader(a.k, a.k_stride, a.keys, walk.kv_head), v = reader(a.v, a.v_stride, a.keys, walk.kv_head);
  Seen seen = seen_before(a, walk.head, threadIdx.x == 0);

  for (int64_t head = walk.head; head < walk.end_of_heads; ++head) {
    const Reader q = reader(a.q, a.q_stride, a.queries, head), dout = reader(a.dout, a.dout_stride, a.queries, head);
    const Reader &scored = by_keys<part> ? q : k, &mixed = by_keys<part> ? dout : v;
    const float bias = a.slopes != nullptr ? a.slopes[head] : 0.0f;
    if (head == walk.head) {
      // The keys behind the last one that is seen may hold anything.
      const bool there = walk.first < a.start + a.queries;
      for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += attention_threads) {
        own_scored[d] = there ? (by_keys<part> ? k : q)(walk.first, d) : 0.0f;
        own_mixed[d] = there ? (by_keys<part> ? v : dout)(walk.first, d) : 0.0f;
        sums[d] = 0;
      }
    }
    for (int64_t at = walk.begin; at < walk.end; at += attention_threads) {
      __syncthreads();  // the rows are there, the weights of the last round have been read
      const int64_t other = at + threadIdx.x, key = by_keys<part> ? walk.first : other;
      const int64_t query = by_keys<part> ? other : walk.first;
      float score[1] = {}, slope[1] = {};
      for (int d = 0; other < walk.end && d < head_dim; ++d) {
        score[0] += own_scored[d] * scored(other, d);
        slope[0] += own_mixed[d] * mixed(other, d);
      }
      if constexpr (part == Part::statistics) {
        score[0] = other < walk.end ? adjusted(a, score[0], bias, a.start + query, key) : -INFINITY;
        if (score[0] == -INFINITY) slope[0] = 0;
        take_in(seen, score, slope);
      } else {
        differentiate(a, score[0], slope[0], statistics_of(a, head, query), bias, a.start + query, key);
        weights[threadIdx.x] = part == Part::dv ? score[0] : slope[0];
        __syncthreads();
        const int count = static_cast<int>(min(int64_t{attention_threads}, walk.end - at));
        for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += attention_threads) {
          float sum = sums[d];
          for (int i = 0; i < count; ++i) sum += weights[i] * (part == Part::dv ? mixed : scored)(at + i, d);
          sums[d] = sum;
        }
      }
    }
  }

  if constexpr (part == Part::statistics) {
    const Statistics s = conclude(seen, CombineBlock());
    if (threadIdx.x == 0) store_statistics(a, walk.head, walk.first, s);
  } else {
    const View out{a.out, dtype, 0, 0, a.out_stride};
    for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += attention_threads)
      write(out, blockIdx.z * rows_of<part>(a) + walk.first, int64_t{blockIdx.y} * head_dim + d,
            sums[d] * output_scale<part>(a));
  }
}

// --- launching --------------------------------------------------------------------------------------------------------

dim3 grid_of(int64_t rows, int block_rows, int64_t heads, int64_t sequences) {
  return dim3(static_cast<unsigned>((rows + block_rows - 1) / block_rows), static_cast<unsigned>(heads),
              static_cast<unsigned>(sequences));
}

template <Part part, int padded>
void launch_tiles(cudaStream_t stream, DType dtype, const GradientArguments& a, int64_t rows, int64_t heads,
                  int64_t sequences) {
  constexpr const char* name = "attention_gradient";
  const dim3 block(attention_threads);
  if (dtype == DType::f32) {
    launch(name, gradient_float<padded, part>, grid_of(rows, float_rows<padded>, heads, sequences), block,
           float_gradient_shared<padded>, stream, a);
    return;
  }
  const auto kernel = dtype == DType::bf16 ? gradient_half<true, padded, part> : gradient_half<false, padded, part>;
  launch(name, kernel, grid_of(rows, half_rows, heads, sequences), block, half_gradient_shared<padded>, stream, a);
}

template <Part part>
void launch_part(cudaStream_t stream, const AttentionGradient& o, const GradientArguments& a, int64_t sequences) {
  const int64_t rows = by_keys<part> ? a.keys : a.queries, heads = by_keys<part> ? o.kv_heads : o.heads;
  const DType dtype = o.q.dtype;
  if (o.head_dim <= 64) {
    launch_tiles<part, 64>(stream, dtype, a, rows, heads, sequences);
  } else if (o.head_dim <= 128) {
    launch_tiles<part, 128>(stream, dtype, a, rows, heads, sequences);
  } else if (o.head_dim <= 256) {
    launch_tiles<part, 256>(stream, dtype, a, rows, heads, sequences);
  } else {
    const size_t shared = (attention_threads + 3 * static_cast<size_t>(o.head_dim)) * sizeof(float);
    launch("attention_gradient", gradient_wide<part>, grid_of(rows, 1, heads, sequences), dim3(attention_threads), shared,
           stream, a, dtype);
  }
}

}  // namespace

void CudaBackend::enqueue(const AttentionGradient& o) {
  if (o.q.rows == 0) return;
  const Tensor q = local(o.q), k = local(o.k), v = local(o.v), dout = local(o.dout);
  const Tensor slopes = local(o.slopes), sinks = local(o.sinks);
  const Tensor statistics = scratch(DType::f32, 2 * o.heads, q.rows), largest = scratch(DType::f32, 1, 1);
  clear(largest);
  for_sequences(o.sequences, [&](int64_t s, int64_t count) {
    GradientArguments a{};
    describe_attention(a, o, q, k, v, slopes, sinks, s);
    a.dout = from_sequence(dout, s, a.queries);
    a.dout_stride = dout.stride;
    a.vector = a.vector && aligned(a.dout, dout, o.head_dim);
    a.statistics_stride = q.rows;
    a.log_sums = statistics.data<float>() + s * a.queries;
    a.means = a.log_sums + o.heads * q.rows;
    a.dsinks = o.dsinks ? o.dsinks.data<float>() + s * a.queries * o.heads : nullptr;
    a.dsinks_stride = o.heads;
    a.largest_slope = reinterpret_cast<unsigned*>(largest.bytes());
    launch_part<Part::statistics>(stream_, o, a, count);
    const auto into = [&](const Tensor& out, int64_t rows) {
      a.out = from_sequence(out, s, rows);
      a.out_stride = out.stride;
    };
    into(o.dq, a.queries);
    launch_part<Part::dq>(stream_, o, a, count);
    into(o.dk, a.keys);
    launch_part<Part::dk>(stream_, o, a, count);
    into(o.dv, a.keys);
    launch_part<Part::dv>(stream_, o, a, count);
  });
}

}  // namespace sparsegpt::cuda
