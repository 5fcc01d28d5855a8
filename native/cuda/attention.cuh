// What the kernels of attention and of its gradient share: the masks and biases of scores, and products of tiles in shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "cuda/element.cuh"

namespace sparsegpt::cuda {

struct AttentionArguments {
  const void *q, *k, *v;
  void* out;
  int64_t q_stride, k_stride, v_stride, out_stride;
  int64_t queries, keys;  // of a sequence
  int64_t start;  // the key at which the first query stands
  int group;  // query heads that share a key head
  int head_dim;
  float scale, softcap;
  int64_t window;
  const float *slopes, *sinks;
  bool vector;  // rows can be read 16 bytes at a time
};

constexpr int attention_threads = 128;

// --- scores -----------------------------------------------------------------------------------------------------------

// `place` is where the query stands among the keys.
__device__ inline bool sees(const AttentionArguments& a, int64_t place, int64_t key) {
  return key <= place && (a.window <= 0 || key > place - a.window);
}

// A product q · k, scaled and capped.
__device__ inline float capped(const AttentionArguments& a, float score) {
  score *= a.scale;
  return a.softcap > 0 ? a.softcap * tanhf(score / a.softcap) : score;
}

__device__ inline float adjusted(const AttentionArguments& a, float score, float slope, int64_t place, int64_t key) {
  return sees(a, place, key) ? capped(a, score) + slope * static_cast<float>(key - place) : -INFINITY;
}

// The score of a head's sink; -∞ without one.
__device__ inline float sink_of(const AttentionArguments& a, int64_t head) {
  return a.sinks != nullptr ? a.sinks[head] : -INFINITY;
}

// The first key that the queries from q0 on see, at the start of a tile.
template <int tile>
__device__ int64_t first_key(const AttentionArguments& a, int64_t q0) {
  const int64_t place = a.start + q0;
  return a.window > 0 && place >= a.window ? (place - a.window + 1) / tile * tile : 0;
}
// Behind the last key that some query before q1 sees.
__device__ inline int64_t end_of_keys(const AttentionArguments& a, int64_t q1) { return a.start + min(a.queries, q1); }

// --- rows in shared memory --------------------------------------------------------------------------------------------

// `rows` rows of one head to shared memory, `pitch` elements apart; zeros beyond the head and what any query
// sees. Chunk is what a thread reads at a time.
template <typename Chunk, typename T, int padded, int rows>
__device__ void load_chunks(T* out, int pitch, const T* in, int64_t stride, int64_t available, int head_dim) {
  constexpr int length = sizeof(Chunk) / sizeof(T), chunks = padded / length;
  for (int e = static_cast<int>(threadIdx.x); e < rows * chunks; e += attention_threads) {
    const int r = e / chunks, c = e % chunks * length;
    Chunk value{};
    if (r < available && c < head_dim) value = *reinterpret_cast<const Chunk*>(in + r * stride + c);
    *reinterpret_cast<Chunk*>(out + r * pitch + c) = value;
  }
}

template <typename T, int padded, int rows>
__device__ void load_rows(T* out, int pitch, const T* in, int64_t stride, int64_t available, const AttentionArguments& a) {
  if (a.vector) {
    load_chunks<uint4, T, padded, rows>(out, pitch, in, stride, available, a.head_dim);
  } else {
    load_chunks<T, T, padded, rows>(out, pitch, in, stride, available, a.head_dim);
  }
}

// --- bfloat16 and float16: a warp's 16 rows ---------------------------------------------------------------------------
//
// A thread holds elements of rows g and g + 8 of the warp's 16, as multiply_tile (intrinsics.cuh) says: of row g + 8 r the elements
// x[n][2 r + e] in column 8 n + 2 t + e.

template <bool bf16>
__device__ inline uint16_t to_bits(float x) {
  if constexpr (bf16) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
  } else {
    return __half_as_ushort(__float2half_rn(x));
  }
}

template <bool bf16>
__device__ inline uint32_t pair(float low, float high) {
  return static_cast<uint32_t>(to_bits<bf16>(low)) | static_cast<uint32_t>(to_bits<bf16>(high)) << 16;
}

__device__ inline uint32_t load_pair(const uint16_t* p) { return *reinterpret_cast<const uint32_t*>(p); }

// out += A Bᵀ with the 16 rows of A at `left` and the 8 · tiles rows of B at `right`, of `padded` elements, `pitch` apart.
template <bool bf16, int padded, int tiles>
__device__ inline void multiply_rows(float (&out)[tiles][4], const uint16_t* left, const uint16_t* right, int pitch) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int d = 0; d < padded; d += 16) {
    const uint16_t* row = left + g * pitch + d + 2 * t;
    const uint32_t a[4] = {load_pair(row), load_pair(row + 8 * pitch), load_pair(row + 8), load_pair(row + 8 * pitch + 8)};
#pragma unroll
    for (int n = 0; n < tiles; ++n) {
      const uint16_t* key = right + (n * 8 + g) * pitch + d + 2 * t;
      multiply_tile<bf16>(out[n], a, load_pair(key), load_pair(key + 8));
    }
  }
}

// out += A B with A as multiply_rows leaves it, rounded, and the 8 · tiles rows of B at `right`. A thread's elements of A are just
// those that it has to hold of a left operand.
template <bool bf16, int tiles, int columns>
__device__ inline void multiply_columns(float (&out)[columns][4], const float (&a)[tiles][4], const uint16_t* right,
                                        int pitch) {
#pragma unroll
  for (int c = 0; c < tiles / 2; ++c) {
    const auto& low = a[2 * c];
    const auto& high = a[2 * c + 1];
    const uint32_t left[4] = {pair<bf16>(low[0], low[1]), pair<bf16>(low[2], low[3]), pair<bf16>(high[0], high[1]),
                              pair<bf16>(high[2], high[3])};
    const uint16_t* row = right + (c * 16 + static_cast<int>(threadIdx.x) % 16) * pitch;
#pragma unroll
    for (int n = 0; n < columns; ++n) {
      uint32_t right0, right1;
      load_transposed(right0, right1, row + n * 8);
      multiply_tile<bf16>(out[n], left, right0, right1);
    }
  }
}

// Row g + 8 r, times a factor.
template <bool bf16, int columns>
__device__ inline void store_row(uint16_t* row, const float (&x)[columns][4], int r, float factor, int head_dim) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int n = 0; n < columns; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int d = n * 8 + 2 * t + e;
      if (d < head_dim) row[d] = to_bits<bf16>(x[n][2 * r + e] * factor);
    }
  }
}

// --- float32: 16 x 8 threads ------------------------------------------------------------------------------------------
//
// A thread has `mine` neighbouring rows, and of them some columns of scores, 8 apart, or features: four neighbours, 32 apart.

// out += A Bᵀ of rows of `padded` elements, `pitch` apart: A's from the thread's first, B's from its first column on.
template <int padded, int mine, int columns>
__device__ inline void multiply_rows(float (&out)[mine][columns], const float* left, const float* right, int pitch) {
#pragma unroll 4
  for (int d = 0; d < padded; d += 4) {
    float4 a[mine];
#pragma unroll
    for (int r = 0; r < mine; ++r) a[r] = *reinterpret_cast<const float4*>(left + r * pitch + d);
#pragma unroll
    for (int c = 0; c < columns; ++c) {
      const float4 b = *reinterpret_cast<const float4*>(right + 8 * c * pitch + d);
#pragma unroll
      for (int r = 0; r < mine; ++r) {
        out[r][c] += a[r].x * b.x;
        out[r][c] += a[r].y * b.y;
        out[r][c] += a[r].z * b.z;
        out[r][c] += a[r].w * b.w;
      }
    }
  }
}

// out += A B: A [mine, depth] from the thread's first row, `left_pitch` apart, B [depth, features] from its first feature.
template <int depth, int mine, int parts>
__device__ inline void multiply_columns(float4 (&out)[mine][parts], const float* left, int left_pitch, const float* right,
                                        int pitch) {
#pragma unroll 4
  for (int i = 0; i < depth; ++i) {
    float a[mine];
#pragma unroll
    for (int r = 0; r < mine; ++r) a[r] = left[r * left_pitch + i];
#pragma unroll
    for (int c = 0; c < parts; ++c) {
      const float4 b = *reinterpret_cast<const float4*>(right + i * pitch + 32 * c);
#pragma unroll
      for (int r = 0; r < mine; ++r) {
        out[r][c].x += a[r] * b.x;
        out[r][c].y += a[r] * b.y;
        out[r][c].z += a[r] * b.z;
        out[r][c].w += a[r] * b.w;
      }
    }
  }
}

// A row times a factor.
template <int parts>
__device__ inline void store_row(float* row, const float4 (&x)[parts], int first, float factor, int head_dim) {
#pragma unroll
  for (int c = 0; c < parts; ++c) {
    const int d = first + 32 * c;
    if (d < head_dim) row[d] = x[c].x * factor;
    if (d + 1 < head_dim) row[d + 1] = x[c].y * factor;
    if (d + 2 < head_dim) row[d + 2] = x[c].z * factor;
    if (d + 3 < head_dim) row[d + 3] = x[c].w * factor;
  }
}

// --- launching --------------------------------------------------------------------------------------------------------

// Whether the rows of a head can be read 16 bytes at a time.
inline bool aligned(const void* data, const Tensor& t, int64_t head_dim) {
  const auto size = static_cast<int64_t>(dtype_size(t.dtype));
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && t.stride * size % 16 == 0 && head_dim * size % 16 == 0;
}

// Rows of the sequences from `sequence` on.
inline std::byte* from_sequence(const Tensor& t, int64_t sequence, int64_t rows) {
  return t.bytes() + sequence * rows * t.stride * static_cast<int64_t>(dtype_size(t.dtype));
}

// Calls body(first, sequences) for as many sequences at a time as a launch's third dimension takes. The second one has the same
// limit, and no model that many heads.
template <typename Body>
void for_sequences(int64_t sequences, const Body& body) {
  constexpr int64_t most = 65535;
  for (int64_t s = 0; s < sequences; s += most) body(s, std::min(most, sequences - s));
}

// All but the output, of the sequences from `sequence` on.
template <typename Operation>
void describe_attention(AttentionArguments& a, const Operation& o, const Tensor& q, const Tensor& k, const Tensor& v,
                        const Tensor& slopes, const Tensor& sinks, int64_t sequence) {
  a.queries = o.queries();
  a.keys = o.keys();
  a.start = o.start;
  a.q = from_sequence(q, sequence, a.queries);
  a.k = from_sequence(k, sequence, a.keys);
  a.v = from_sequence(v, sequence, a.keys);
  a.q_stride = q.stride;
  a.k_stride = k.stride;
  a.v_stride = v.stride;
  a.group = static_cast<int>(o.heads / o.kv_heads);
  a.head_dim = static_cast<int>(o.head_dim);
  a.scale = o.scale;
  a.softcap = o.softcap;
  a.window = o.window;
  a.slopes = slopes ? slopes.data<float>() : nullptr;
  a.sinks = sinks ? sinks.data<float>() : nullptr;
  a.vector = aligned(a.q, q, o.head_dim) && aligned(a.k, k, o.head_dim) && aligned(a.v, v, o.head_dim);
}

}  // namespace sparsegpt::cuda
