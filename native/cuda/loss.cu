// Cross entropy: the logits exist in tiles only, over which each token's sum of exponentials is carried along.
#include "cuda/cuda_backend.h"
#include "cuda/each.cuh"
#include "cuda/element.cuh"
#include "cuda/sizes.h"

namespace sparsegpt::cuda {

namespace {

// Σ exp(logit - largest) over the words seen so far, and the logit of the target.
struct RunningLoss {
  float largest, wanted;
  double sum;
};
static_assert(sizeof(RunningLoss) == running_loss_bytes);

__device__ float final_logit(const View& logits, int64_t t, int64_t w, const float* bias, float cap) {
  float x = read(logits, t, w);
  if (bias != nullptr) x += bias[w];
  return cap > 0 ? cap * tanhf(x / cap) : x;
}

__global__ void start_losses(RunningLoss* running, int64_t tokens, const int32_t* targets, int64_t words,
                             int64_t* bad_position) {
  const int64_t t = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (t >= tokens) return;
  running[t] = {-INFINITY, 0.0f, 0.0};
  if (targets[t] < 0 || targets[t] >= words) report(bad_position, position_and_id(t, targets[t]));
}

// Takes the words [first_word, first_word + logits.columns) in: logits [tokens, words] f32; bias f32 [words] or null.
__global__ void extend_losses(RunningLoss* running, View logits, const float* bias, float cap, const int32_t* targets,
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

__global__ void finish_losses(float* losses, const RunningLoss* running, int64_t tokens) {
  const int64_t t = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (t < tokens) losses[t] = static_cast<float>(running[t].largest + log(running[t].sum) - running[t].wanted);
}

}  // namespace

void CudaBackend::enqueue(const CrossEntropy& o) {
  const int64_t tokens = o.x.rows, words = o.head.rows;
  if (tokens == 0) return;
  int64_t* bad = watch_ids("INVALID_OPTION", [words](int64_t, int64_t id) {
    return "token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(words) +
           " (in crossEntropy)";
  });
  const LossTile most = cut(o);
  const DType type = product_type(o.x, o.head);
  const Tensor targets = local(o.targets), left = local(o.x, type), biases = local(o.bias, DType::f32);
  const Tensor running_memory = scratch(DType::u8, tokens, running_loss_bytes);
  auto* running = reinterpret_cast<RunningLoss*>(running_memory.bytes());
  const dim3 a_thread_each(static_cast<unsigned>((tokens + block_threads - 1) / block_threads));
  launch("cross_entropy", start_losses, a_thread_each, dim3(block_threads), 0, stream_, running, tokens,
         targets.data<int32_t>(), words, bad);
  // Words outside, so that a head in host memory travels once.
  const Tensor logits = scratch(DType::f32, 1, most.tokens * most.words);
  for (int64_t w = 0; w < words; w += most.words) {
    const int64_t width = std::min(most.words, words - w);
    const Tensor right = local(o.head.row_range(w, width), type);
    for (int64_t t = 0; t < tokens; t += most.tokens) {
      const int64_t count = std::min(most.tokens, tokens - t);
      Tensor tile = logits;
      tile.rows = count;
      tile.columns = tile.stride = width;
      gemm(count, width, o.x.columns, 1, operand(left.row_range(t, count)), transposed(right), 0, tile);
      launch("cross_entropy", extend_losses, grid_of_rows(count), dim3(block_threads), 0, stream_, running + t, view(tile),
             biases ? biases.data<float>() + w : nullptr, o.softcap, targets.data<int32_t>() + t, w);
    }
  }
  launch("cross_entropy", finish_losses, a_thread_each, dim3(block_threads), 0, stream_, o.losses.data<float>(), running,
         tokens);
}

}  // namespace sparsegpt::cuda
