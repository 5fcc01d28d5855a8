// Causal attention, fused: a block of threads takes some queries of one head, walks over the keys they see and keeps the
// running maximum, sum and weighted values of each (Dao et al. 2022, arXiv 2205.14135), so the score matrix never exists.
//
// bfloat16 and float16 use the tensor cores, 16 queries to a warp, with scores and sums in float32; float32 uses plain
// multiply-adds. Heads are padded with zeros to the next size that a kernel is compiled for; a plain kernel takes wider ones.
#include "cuda/attention.cuh"
#include "cuda/cuda_backend.h"

namespace sparsegpt::cuda {

namespace {

// --- bfloat16 and float16 ---------------------------------------------------------------------------------------------

constexpr int half_queries = 64;
template <int padded>
constexpr int half_keys = padded > 128 ? 32 : 64;
template <int padded>
constexpr size_t half_shared = (half_queries + 2 * half_keys<padded>)*(padded + 8) * sizeof(uint16_t);

template <bool bf16, int padded>
__global__ void __launch_bounds__(attention_threads) attention_half(AttentionArguments a) {
  constexpr int keys = half_keys<padded>;
  constexpr int pitch = padded + 8;  // 16 bytes more: rows start in different banks
  auto* q_tile = reinterpret_cast<uint16_t*>(dynamic_shared());
  uint16_t* k_tile = q_tile + half_queries * pitch;
  uint16_t* v_tile = k_tile + keys * pitch;

  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4;
  // The last queries see the most keys: they go first.
  const int64_t q0 = (gridDim.x - 1 - blockIdx.x) * int64_t{half_queries};
  const int64_t head = blockIdx.y, kv_head = head / a.group, first = blockIdx.z * a.queries;
  const int64_t first_of_keys = blockIdx.z * a.keys;
  const auto* q = static_cast<const uint16_t*>(a.q) + (first + q0) * a.q_stride + head * a.head_dim;
  const auto* k = static_cast<const uint16_t*>(a.k) + first_of_keys * a.k_stride + kv_head * a.head_dim;
  const auto* v = static_cast<const uint16_t*>(a.v) + first_of_keys * a.v_stride + kv_head * a.head_dim;
  const float slope = a.slopes != nullptr ? a.slopes[head] : 0.0f;

  load_rows<uint16_t, padded, half_queries>(q_tile, pitch, q, a.q_stride, a.queries - q0, a);
  // Where this thread's two rows of the warp's 16 stand: g and g + 8.
  const int64_t place[2] = {a.start + q0 + warp * 16 + g, a.start + q0 + warp * 16 + g + 8};
  float out[padded / 8][4] = {};
  // Of the four threads that hold a row one counts the sink.
  const float sink = sink_of(a, head), sunk = a.sinks != nullptr && t == 0 ? 1.0f : 0.0f;
  float largest[2] = {sink, sink}, sum[2] = {sunk, sunk};

  const int64_t end = end_of_keys(a, q0 + half_queries);
  for (int64_t k0 = first_key<keys>(a, q0); k0 < end; k0 += keys) {
    __syncthreads();  // the tiles of the last round have been read
    load_rows<uint16_t, padded, keys>(k_tile, pitch, k + k0 * a.k_stride, a.k_stride, a.start + a.queries - k0, a);
    load_rows<uint16_t, padded, keys>(v_tile, pitch, v + k0 * a.v_stride, a.v_stride, a.start + a.queries - k0, a);
    __syncthreads();

    float score[keys / 8][4] = {};
    multiply_rows<bf16, padded>(score, q_tile + warp * 16 * pitch, k_tile, pitch);

#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < keys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = score[n][2 * r + e];
          x = adjusted(a, x, slope, place[r], k0 + n * 8 + 2 * t + e);
          top = fmaxf(top, x);
        }
      }
      // The four threads of a quad hold one row.
      top = fmaxf(top, __shfl_xor_sync(whole_warp, top, 1));
      top = fmaxf(top, __shfl_xor_sync(whole_warp, top, 2));
      top = fmaxf(top, largest[r]);
      const float base = top == -INFINITY ? 0.0f : top;  // no key in sight yet
      const float shrink = expf(largest[r] - base);
      largest[r] = top;
      sum[r] *= shrink;
#pragma unroll
      for (int n = 0; n < keys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = score[n][2 * r + e];
          x = expf(x - base);
          sum[r] += x;
        }
      }
#pragma unroll
      for (int n = 0; n < padded / 8; ++n) {
        out[n][2 * r] *= shrink;
        out[n][2 * r + 1] *= shrink;
      }
    }

    multiply_columns<bf16>(out, score, v_tile, pitch);
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(whole_warp, sum[r], 1);
    sum[r] += __shfl_xor_sync(whole_warp, sum[r], 2);
    const int64_t query = place[r] - a.start;
    if (query >= a.queries) continue;
    const float inverse = 1.0f / sum[r];
    auto* row = static_cast<uint16_t*>(a.out) + (first + query) * a.out_stride + head * a.head_dim;
    store_row<bf16>(row, out, r, inverse, a.head_dim);
  }
}

// --- float32 ----------------------------------------------------------------------------------------------------------

constexpr int float_keys = 32;
template <int padded>
constexpr int float_queries = padded > 128 ? 32 : 64;
template <int padded>
constexpr size_t float_shared =
    ((float_queries<padded> + float_keys) * (padded + 4) + float_queries<padded> * (float_keys + 4)) * sizeof(float);

// 16 x 8 threads: each has queries / 16 neighbouring queries, and of them 4 keys or padded / 8 features, 8 apart.
template <int padded>
__global__ void __launch_bounds__(attention_threads) attention_float(AttentionArguments a) {
  constexpr int queries = float_queries<padded>, mine = queries / 16;
  constexpr int pitch = padded + 4, score_pitch = float_keys + 4;
  auto* q_tile = reinterpret_cast<float*>(dynamic_shared());
  float* kv_tile = q_tile + queries * pitch;  // keys, then values
  float* scores = kv_tile + float_keys * pitch;

  const int across = static_cast<int>(threadIdx.x) % 8, down = static_cast<int>(threadIdx.x) / 8;
  const int64_t q0 = (gridDim.x - 1 - blockIdx.x) * int64_t{queries};
  const int64_t head = blockIdx.y, kv_head = head / a.group, first = blockIdx.z * a.queries;
  const int64_t first_of_keys = blockIdx.z * a.keys;
  const auto* q = static_cast<const float*>(a.q) + (first + q0) * a.q_stride + head * a.head_dim;
  const auto* k = static_cast<const float*>(a.k) + first_of_keys * a.k_stride + kv_head * a.head_dim;
  const auto* v = static_cast<const float*>(a.v) + first_of_keys * a.v_stride + kv_head * a.head_dim;
  const float slope = a.slopes != nullptr ? a.slopes[head] : 0.0f;

  load_rows<float, padded, queries>(q_tile, pitch, q, a.q_stride, a.queries - q0, a);
  float4 out[mine][padded / 32];
  float largest[mine], sum[mine];
#pragma unroll
  for (int r = 0; r < mine; ++r) {
    // Of the eight threads that hold a row one counts the sink.
    largest[r] = sink_of(a, head);
    sum[r] = a.sinks != nullptr && across == 0 ? 1.0f : 0.0f;
#pragma unroll
    for (int c = 0; c < padded / 32; ++c) out[r][c] = make_float4(0, 0, 0, 0);
  }

  const int64_t end = end_of_keys(a, q0 + queries);
  for (int64_t k0 = first_key<float_keys>(a, q0); k0 < end; k0 += float_keys) {
    __syncthreads();  // the values of the last round have been read
    load_rows<float, padded, float_keys>(kv_tile, pitch, k + k0 * a.k_stride, a.k_stride, a.start + a.queries - k0, a);
    __syncthreads();

    float score[mine][4] = {};
    multiply_rows<padded>(score, q_tile + down * mine * pitch, kv_tile + across * pitch, pitch);

#pragma unroll
    for (int r = 0; r < mine; ++r) {
      const int64_t query = q0 + down * mine + r;
      float top = -INFINITY;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        score[r][c] = adjusted(a, score[r][c], slope, a.start + query, k0 + across + 8 * c);
        top = fmaxf(top, score[r][c]);
      }
      // Eight neighbouring threads hold one row.
#pragma unroll
      for (int step = 1; step < 8; step *= 2) top = fmaxf(top, __shfl_xor_sync(whole_warp, top, step));
      top = fmaxf(top, largest[r]);
      const float base = top == -INFINITY ? 0.0f : top;  // no key in sight yet
      const float shrink = expf(largest[r] - base);
      largest[r] = top;
      sum[r] *= shrink;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float p = expf(score[r][c] - base);
        sum[r] += p;
        scores[(down * mine + r) * score_pitch + across + 8 * c] = p;
      }
#pragma unroll
      for (int c = 0; c < padded / 32; ++c) {
        out[r][c].x *= shrink;
        out[r][c].y *= shrink;
        out[r][c].z *= shrink;
        out[r][c].w *= shrink;
      }
    }
    __syncthreads();  // the keys have been read
    load_rows<float, padded, float_keys>(kv_tile, pitch, v + k0 * a.v_stride, a.v_stride, a.start + a.queries - k0, a);
    __syncthreads();

    multiply_columns<float_keys>(out, scores + down * mine * score_pitch, score_pitch, kv_tile + across * 4, pitch);
  }

#pragma unroll
  for (int r = 0; r < mine; ++r) {
    const int64_t query = q0 + down * mine + r;
#pragma unroll
    for (int step = 1; step < 8; step *= 2) sum[r] += __shfl_xor_sync(whole_warp, sum[r], step);
    if (query >= a.queries) continue;
    const float inverse = 1.0f / sum[r];
    float* row = static_cast<float*>(a.out) + (first + query) * a.out_stride + head * a.head_dim;
    store_row(row, out[r], across * 4, inverse, a.head_dim);
  }
}

// --- heads of any size ------------------------------------------------------------------------------------------------

// A block of threads for each query and head; their sums are in shared memory. Slow: for the few models with wider heads than the
// kernels above are compiled for.
__global__ void __launch_bounds__(attention_threads) attention_wide(AttentionArguments a, DType dtype) {
  const int head_dim = a.head_dim;
  auto* weights = reinterpret_cast<float*>(dynamic_shared());  // of `attention_threads` keys
  float* query_row = weights + attention_threads;  // [head_dim]
  float* sums = query_row + head_dim;  // [head_dim]
  const auto rows_of_head = [&](const void* data, int64_t stride, int64_t rows, int64_t head) {
    const View all{const_cast<void*>(data), dtype, 0, 0, stride};
    return [all, first = blockIdx.z * rows, column = head * head_dim](int64_t row, int d) {
      return read(all, first + row, column + d);
    };
  };
  const int64_t query = gridDim.x - 1 - blockIdx.x, place = a.start + query, head = blockIdx.y;
  const auto q = rows_of_head(a.q, a.q_stride, a.queries, head);
  const auto k = rows_of_head(a.k, a.k_stride, a.keys, head / a.group);
  const auto v = rows_of_head(a.v, a.v_stride, a.keys, head / a.group);
  const float slope = a.slopes != nullptr ? a.slopes[head] : 0.0f;
  for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += attention_threads) {
    query_row[d] = q(query, d);
    sums[d] = 0;
  }
  float largest = sink_of(a, head), sum = a.sinks != nullptr ? 1.0f : 0.0f;
  for (int64_t k0 = first_key<1>(a, query); k0 <= place; k0 += attention_threads) {
    __syncthreads();  // the query is there, the weights of the last round have been read
    const int64_t key = k0 + threadIdx.x;
    float score = 0;
    for (int d = 0; key <= place && d < head_dim; ++d) score += query_row[d] * k(key, d);
    score = adjusted(a, score, slope, place, key);
    const float top = fmaxf(combine_block(score, Largest()), largest);
    const float shrink = expf(largest - top), weight = expf(score - top);
    largest = top;
    weights[threadIdx.x] = weight;
    sum = sum * shrink + combine_block(weight, Sum());  // whose barriers make the weights visible
    const int count = static_cast<int>(min(int64_t{attention_threads}, place + 1 - k0));
    for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += attention_threads) {
      float value = sums[d] * shrink;
      for (int i = 0; i < count; ++i) value += weights[i] * v(k0 + i, d);
      sums[d] = value;
    }
  }
  const View out{a.out, dtype, 0, 0, a.out_stride};
  for (int d = static_cast<int>(threadIdx.x); d < head_dim; d += attention_threads)
    write(out, blockIdx.z * a.queries + query, head * head_dim + d, sums[d] / sum);
}

template <int padded>
void launch_tiles(cudaStream_t stream, DType dtype, const AttentionArguments& a, int64_t heads, int64_t sequences) {
  const int queries = dtype == DType::f32 ? float_queries<padded> : half_queries;
  const dim3 grid(static_cast<unsigned>((a.queries + queries - 1) / queries), static_cast<unsigned>(heads),
                  static_cast<unsigned>(sequences));
  if (dtype == DType::f32) {
    launch("attention", attention_float<padded>, grid, dim3(attention_threads), float_shared<padded>, stream, a);
  } else if (dtype == DType::bf16) {
    launch("attention", attention_half<true, padded>, grid, dim3(attention_threads), half_shared<padded>, stream, a);
  } else {
    launch("attention", attention_half<false, padded>, grid, dim3(attention_threads), half_shared<padded>, stream, a);
  }
}

}  // namespace

void CudaBackend::enqueue(const Attention& o) {
  if (o.q.rows == 0) return;
  const Tensor q = local(o.q), k = local(o.k), v = local(o.v), slopes = local(o.slopes), sinks = local(o.sinks);
  for_sequences(o.sequences, [&](int64_t s, int64_t count) {
    AttentionArguments a{};
    describe_attention(a, o, q, k, v, slopes, sinks, s);
    a.out = from_sequence(o.out, s, a.queries);
    a.out_stride = o.out.stride;
    if (o.head_dim <= 64) {
      launch_tiles<64>(stream_, q.dtype, a, o.heads, count);
    } else if (o.head_dim <= 128) {
      launch_tiles<128>(stream_, q.dtype, a, o.heads, count);
    } else if (o.head_dim <= 256) {
      launch_tiles<256>(stream_, q.dtype, a, o.heads, count);
    } else {
      const dim3 grid(static_cast<unsigned>(a.queries), static_cast<unsigned>(o.heads), static_cast<unsigned>(count));
      const size_t shared = (attention_threads + 2 * static_cast<size_t>(o.head_dim)) * sizeof(float);
      launch("attention", attention_wide, grid, dim3(attention_threads), shared, stream_, a, q.dtype);
    }
  });
}

}  // namespace sparsegpt::cuda
