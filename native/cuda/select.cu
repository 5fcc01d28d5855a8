// Scores and masks. The smallest scores are chosen by a radix select: three passes over them find the threshold, 11, 10 and 10 bits at a time: each counts how the scores that agree with the bits found so far fall
// on the values of the next ones. A fourth pass counts the scores that equal the threshold in every tile of rows, so that of
// these the first ones can be taken. All counts are integers, so the outcome does not depend on the order of the threads.
#include <algorithm>

#include "cuda/cuda_backend.h"
#include "cuda/each.cuh"
#include "cuda/threshold.cuh"

namespace sparsegpt::cuda {

namespace {

constexpr int passes = 3;

__device__ int pass_shift(int pass) { return pass == 0 ? 20 : pass == 1 ? 10 : 0; }
__device__ int pass_buckets(int pass) { return pass == 0 ? selection_buckets : 1024; }
// Whether a key agrees with the bits found by the passes before.
__device__ bool agrees(uint32_t key, int pass, uint32_t prefix) {
  return pass == 0 || key >> (pass == 1 ? 20 : 10) == prefix;
}
__device__ uint32_t bucket_of(uint32_t key, int pass) {
  return key >> pass_shift(pass) & static_cast<uint32_t>(pass_buckets(pass) - 1);
}

// Sums of all threads up to and including this one.
__device__ unsigned long long scan_block(unsigned long long value) {
  __shared__ unsigned long long totals[32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (unsigned step = 1; step < 32; step *= 2) {
    const unsigned long long other = __shfl_up_sync(whole_warp, value, step);
    if (lane >= step) value += other;
  }
  __syncthreads();  // the totals of an earlier call have been read
  if (lane == 31) totals[warp] = value;
  __syncthreads();
  for (unsigned w = 0; w < warp; ++w) value += totals[w];
  return value;
}

// Finds the bucket in which the `wanted`-th smallest lies, counted from 1: every thread looks at its share of the buckets, and
// the one that has it calls found(bucket, how many lie in the buckets before, in this one).
template <typename Count, typename Found>
__device__ void find_bucket(int buckets, unsigned long long wanted, const Count& count, const Found& found) {
  const int each = (buckets + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x);
  const int begin = static_cast<int>(threadIdx.x) * each, end = min(begin + each, buckets);
  unsigned long long mine = 0;
  for (int b = begin; b < end; ++b) mine += count(b);
  const unsigned long long after = scan_block(mine);
  unsigned long long before = after - mine;
  if (before >= wanted || after < wanted) return;
  for (int b = begin; b < end; ++b) {
    const unsigned long long here = count(b);
    if (before + here >= wanted) {
      found(b, before, here);
      return;
    }
    before += here;
  }
}

// True in all threads of the block that finishes last. What the others wrote before is then visible.
__device__ bool last_block(uint32_t* ticket) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  if (last) __threadfence();
  return last;
}

__device__ inline void skip_absent_zeros(Ranking& scores) {
  if (scores.zeros != nullptr && *scores.any_zeros == 0) scores.zeros = nullptr;
}

// The score of element e of a tile that starts at row `first`; a tile has far fewer elements than 2^32, and 32-bit division is
// the faster one.
__device__ uint32_t tile_key(const Ranking& scores, int64_t first, unsigned e) {
  const auto columns = static_cast<unsigned>(scores.columns);
  return key_of(score_of(scores, first + e / columns, e % columns));
}

__global__ void count_buckets(Ranking scores, int64_t tile_rows, int pass, unsigned long long count, SelectionState* state) {
  skip_absent_zeros(scores);
  __shared__ unsigned histogram[selection_buckets];
  const int buckets = pass_buckets(pass);
  for (int b = static_cast<int>(threadIdx.x); b < buckets; b += blockDim.x) histogram[b] = 0;
  __syncthreads();
  const uint32_t prefix = state->prefix;
  const int64_t tiles = (scores.rows + tile_rows - 1) / tile_rows;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first = tile * tile_rows, rows = min(tile_rows, scores.rows - first);
    const auto elements = static_cast<unsigned>(rows * scores.columns);
    for (unsigned e = threadIdx.x; e < elements; e += blockDim.x) {
      const uint32_t key = tile_key(scores, first, e);
      if (agrees(key, pass, prefix)) atomicAdd(histogram + bucket_of(key, pass), 1u);
    }
  }
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < buckets; b += blockDim.x)
    if (histogram[b] > 0) atomicAdd(state->histogram + b, static_cast<unsigned long long>(histogram[b]));

  if (!last_block(&state->ticket)) return;
  volatile unsigned long long* totals = state->histogram;
  const unsigned long long wanted = pass == 0 ? count : state->remaining;
  __syncthreads();  // everyone has read `remaining` before one thread changes it
  find_bucket(
      buckets, wanted, [&](int b) { return totals[b]; },
      [&](int b, unsigned long long before, unsigned long long) {
        const uint32_t found = pass == 0 ? static_cast<uint32_t>(b) : prefix << 10 | static_cast<uint32_t>(b);
        if (pass < passes - 1) {
          state->prefix = found;
          state->remaining = wanted - before;
        } else {
          state->threshold = {found, wanted - before};
          state->prefix = 0;
          state->remaining = 0;
        }
      });
  __syncthreads();  // the totals have been read
  for (int b = static_cast<int>(threadIdx.x); b < buckets; b += blockDim.x) totals[b] = 0;
  if (threadIdx.x == 0) state->ticket = 0;
}

__global__ void set_quotas(Ranking scores, int64_t tile_rows, SelectionState* state, unsigned long long* quota) {
  skip_absent_zeros(scores);
  const int64_t tiles = (scores.rows + tile_rows - 1) / tile_rows;
  const uint32_t threshold = state->threshold.key;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first = tile * tile_rows, rows = min(tile_rows, scores.rows - first);
    unsigned long long equal = 0;
    const auto elements = static_cast<unsigned>(rows * scores.columns);
    for (unsigned e = threadIdx.x; e < elements; e += blockDim.x) equal += tile_key(scores, first, e) == threshold;
    equal = combine_block(equal, Sum());
    if (threadIdx.x == 0) quota[tile] = equal;
  }

  if (!last_block(&state->ticket)) return;
  // From how many there are to how many go.
  volatile unsigned long long* counts = quota;
  const unsigned long long ties = state->threshold.ties;
  __shared__ unsigned long long before;
  if (threadIdx.x == 0) before = 0;
  __syncthreads();
  for (int64_t base = 0; base < tiles; base += blockDim.x) {
    const int64_t tile = base + threadIdx.x;
    const unsigned long long equal = tile < tiles ? counts[tile] : 0;
    const unsigned long long up_to = scan_block(equal) + before, start = up_to - equal;
    if (tile < tiles) counts[tile] = up_to <= ties ? all_equal : start < ties ? ties - start : 0;
    __syncthreads();
    if (threadIdx.x == blockDim.x - 1) before = up_to;
    __syncthreads();
  }
  if (threadIdx.x == 0) state->ticket = 0;
}

// Writes the mask of `count` consecutive scores.
template <typename Key, typename Write>
__device__ void write_chosen(unsigned count, const Threshold& threshold, unsigned long long quota, const Key& key,
                             const Write& set) {
  for (unsigned e = threadIdx.x; e < count; e += blockDim.x) {
    const uint32_t k = key(e);
    set(e, k < threshold.key || (k == threshold.key && quota == all_equal));
  }
  if (quota == 0 || quota == all_equal) return;
  take_ties(count, quota, [&](unsigned e) { return key(e) == threshold.key; }, [&](unsigned e) { set(e, true); });
}

__global__ void mask_tiles(Ranking scores, int64_t tile_rows, const SelectionState* state, const unsigned long long* quota,
                           uint8_t* mask, int64_t mask_stride) {
  const int64_t tiles = (scores.rows + tile_rows - 1) / tile_rows;
  const Threshold threshold = state->threshold;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first = tile * tile_rows, rows = min(tile_rows, scores.rows - first);
    write_chosen(
        static_cast<unsigned>(rows * scores.columns), threshold, quota[tile],
        [&](unsigned e) { return tile_key(scores, first, e); },
        [&](unsigned e, bool chosen) {
          const auto columns = static_cast<unsigned>(scores.columns);
          mask[(first + e / columns) * mask_stride + e % columns] = chosen;
        });
  }
}

// All passes for one row after another, each by one block of threads.
__global__ void mask_rows(Ranking scores, unsigned long long count, uint8_t* mask, int64_t mask_stride) {
  __shared__ unsigned histogram[selection_buckets];
  __shared__ uint32_t prefix;
  __shared__ unsigned long long remaining;
  for (int64_t row = blockIdx.x; row < scores.rows; row += gridDim.x) {
    __syncthreads();  // the last row is done
    if (threadIdx.x == 0) {
      prefix = 0;
      remaining = count;
    }
    for (int pass = 0; pass < passes; ++pass) {
      const int buckets = pass_buckets(pass);
      for (int b = static_cast<int>(threadIdx.x); b < buckets; b += blockDim.x) histogram[b] = 0;
      __syncthreads();
      for (int64_t j = threadIdx.x; j < scores.columns; j += blockDim.x) {
        const uint32_t key = key_of(score_of(scores, row, j));
        if (agrees(key, pass, prefix)) atomicAdd(histogram + bucket_of(key, pass), 1u);
      }
      __syncthreads();
      const unsigned long long wanted = remaining;
      const uint32_t known = prefix;
      __syncthreads();
      find_bucket(
          buckets, wanted, [&](int b) { return histogram[b]; },
          [&](int b, unsigned long long before, unsigned long long here) {
            prefix = pass == 0 ? static_cast<uint32_t>(b) : known << 10 | static_cast<uint32_t>(b);
            remaining = wanted - before;
            if (pass == passes - 1 && remaining == here) remaining = all_equal;
          });
      __syncthreads();
    }
    write_chosen(
        static_cast<unsigned>(scores.columns), Threshold{prefix, remaining}, remaining,
        [&](unsigned j) { return key_of(score_of(scores, row, j)); },
        [&](unsigned j, bool chosen) { mask[row * mask_stride + j] = chosen; });
  }
}

// One thread for each group.
__global__ void mask_groups_kernel(Ranking scores, int n, int m, uint8_t* mask, int64_t mask_stride) {
  const int64_t groups = scores.columns / m;
  for (int64_t row = blockIdx.y; row < scores.rows; row += gridDim.y) {
    for (int64_t g = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; g < groups; g += int64_t{gridDim.x} * blockDim.x) {
      for (int a = 0; a < m; ++a) {
        const float mine = score_of(scores, row, g * m + a);
        int rank = 0;
        for (int b = 0; b < m; ++b) {
          const float other = score_of(scores, row, g * m + b);
          rank += b < a ? other <= mine : other < mine;
        }
        mask[row * mask_stride + g * m + a] = rank < n;
      }
    }
  }
}

// Enough blocks to fill a large GPU a few times over.
dim3 grid_of(int64_t tasks) { return dim3(static_cast<unsigned>(std::min<int64_t>(tasks, 2048))); }

// --- operations -------------------------------------------------------------------------------------------------------

struct ScoreElement {
  View out, weight;
  const float* squares;
  __device__ void operator()(int64_t i, int64_t j) const {
    row_of<float>(out, i)[j] = fabsf(row_of<float>(weight, i)[j]) * sqrtf(squares[j]);
  }
};

struct ApplyElement {
  float* weight;
  const uint8_t* mask;
  __device__ void operator()(int64_t i) const {
    if (mask[i]) weight[i] = 0;
  }
};

struct MarkElement {
  const float* x;
  uint8_t* mask;
  __device__ void operator()(int64_t i) const { mask[i] = x[i] == 0.0f; }
};

}  // namespace

Chooser::Chooser(Context& context, int64_t rows, int64_t tile_rows)
    : stream_(context.stream()),
      tile_rows_(tile_rows),
      state_(context.scratch(DType::u8, 1, sizeof(SelectionState))),
      quota_(context.scratch(DType::f64, 1, (rows + tile_rows - 1) / tile_rows)) {
  check(cudaMemsetAsync(state_.bytes(), 0, byte_size(state_), stream_), "clearing memory");
}

void Chooser::find_threshold(const Ranking& scores, int64_t count) const {
  const int64_t tiles = quota_.columns;
  for (int pass = 0; pass < passes; ++pass)
    launch("select", count_buckets, grid_of(tiles), dim3(block_threads), 0, stream_, scores, tile_rows_, pass,
           static_cast<unsigned long long>(count), state());
}

void Chooser::choose(const Ranking& scores, double sparsity) const {
  const int64_t total = scores.rows * scores.columns;
  const auto count = static_cast<int64_t>(static_cast<double>(total) * sparsity);
  if (count > 0 && count < total) {
    find_threshold(scores, count);
    launch("select", set_quotas, grid_of(quota_.columns), dim3(block_threads), 0, stream_, scores, tile_rows_, state(),
           quota());
    return;
  }
  // Every score's bits are below a key of ones, none below zero.
  check(cudaMemsetAsync(&state()->threshold, count > 0 ? 0xff : 0, sizeof(Threshold), stream_), "clearing memory");
  check(cudaMemsetAsync(quota(), 0, byte_size(quota_), stream_), "clearing memory");
}

void Chooser::choose_inclusive(const Ranking& scores, int64_t count) const {
  find_threshold(scores, count);
  check(cudaMemsetAsync(quota(), 0xff, byte_size(quota_), stream_), "setting memory");
}

void Chooser::write_mask(const Ranking& scores, uint8_t* mask, int64_t mask_stride) const {
  launch("select", mask_tiles, grid_of(quota_.columns), dim3(block_threads), 0, stream_, scores, tile_rows_, state(),
         quota(), mask, mask_stride);
}

void mask_groups(cudaStream_t stream, const Ranking& scores, int n, int m, uint8_t* mask, int64_t mask_stride) {
  const int64_t groups = scores.columns / m;
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>((groups + block_threads - 1) / block_threads, 65535)),
                  static_cast<unsigned>(std::min<int64_t>(scores.rows, 65535)));
  launch("select", mask_groups_kernel, grid, dim3(block_threads), 0, stream, scores, n, m, mask, mask_stride);
}

void CudaBackend::enqueue(const Scores& o) {
  const Tensor weight = local(o.weight), squares = local(o.squares);
  for_elements("scores", stream_, weight.rows, weight.columns,
               ScoreElement{view(o.out), view(weight), squares.data<float>()});
}

void CudaBackend::enqueue(const SelectMask& o) {
  const Tensor values = local(o.scores);
  const int64_t rows = values.rows, columns = values.columns;
  const Ranking scores{Ranking::magnitude, values.data<float>(), rows, columns, columns, nullptr};
  auto* mask = o.mask.data<uint8_t>();
  // How many go of `total`; a mask of all or none needs no scores.
  const auto number_of = [&](int64_t total) { return static_cast<int64_t>(static_cast<double>(total) * o.sparsity); };
  const auto set_all = [&](bool chosen) {
    check(cudaMemsetAsync(mask, chosen ? 1 : 0, byte_size(o.mask), stream_), "setting memory");
  };
  if (o.m > 0) {
    mask_groups(stream_, scores, o.n, o.m, mask, columns);
  } else if (o.by_row) {
    const int64_t count = number_of(columns);
    if (count <= 0 || count >= columns) {
      set_all(count > 0);
    } else {
      launch("select", mask_rows, grid_of(rows), dim3(block_threads), 0, stream_, scores,
             static_cast<unsigned long long>(count), mask, columns);
    }
  } else if (o.inclusive ? o.sparsity <= 0 : number_of(values.size()) <= 0) {
    set_all(false);
  } else {
    const Chooser chooser(*context_, rows, selection_tile_rows(columns));
    if (o.inclusive) {
      chooser.choose_inclusive(scores, std::min(number_of(values.size()) + 1, values.size()));
    } else {
      chooser.choose(scores, o.sparsity);
    }
    chooser.write_mask(scores, mask, columns);
  }
}

void CudaBackend::enqueue(const ApplyMask& o) {
  const Tensor mask = local(o.mask);
  for_indices("apply_mask", stream_, o.weight.size(), ApplyElement{o.weight.data<float>(), mask.data<uint8_t>()});
}

void CudaBackend::enqueue(const MarkZeros& o) {
  const Tensor x = local(o.x);
  for_indices("mark_zeros", stream_, o.x.size(), MarkElement{x.data<float>(), o.mask.data<uint8_t>()});
}

}  // namespace sparsegpt::cuda
