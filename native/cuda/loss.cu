// Losses of a language model. Of cross entropy the logits exist in tiles only, over which each token's sum of exponentials is
// carried along; the divergence of two models takes whole rows of logits, of some tokens at a time.
#include "cuda/cuda_backend.h"
#include "cuda/each.cuh"
#include "cuda/element.cuh"
#include "cuda/sizes.h"

namespace sparsegpt::cuda {

namespace {

// Σ exp(logit - largest) over the words seen so far, the logit of the target, and the word of the largest.
struct RunningLoss {
  float largest, wanted;
  double sum;
  int32_t likeliest;
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
  running[t] = {-INFINITY, 0.0f, 0.0, 0};
  if (targets[t] < 0 || targets[t] >= words) report(bad_position, position_and_id(t, targets[t]));
}

// Takes the words [first_word, first_word + logits.columns) in: logits [tokens, words] f32; bias f32 [words] or null. `likeliest`:
// whether the word of the largest logit is wanted.
__global__ void extend_losses(RunningLoss* running, View logits, const float* bias, float cap, const int32_t* targets,
                              int64_t first_word, bool likeliest) {
  for (int64_t t = blockIdx.x; t < logits.rows; t += gridDim.x) {
    float largest = -INFINITY;
    for (int64_t w = threadIdx.x; w < logits.columns; w += blockDim.x)
      largest = fmaxf(largest, final_logit(logits, t, w, bias, cap));
    largest = combine_block(largest, Largest());
    float sum = 0;
    for (int64_t w = threadIdx.x; w < logits.columns; w += blockDim.x)
      sum += expf(final_logit(logits, t, w, bias, cap) - largest);
    const double total = combine_block(static_cast<double>(sum), Sum());
    int first = static_cast<int>(logits.columns);
    if (likeliest) {
      for (int64_t w = threadIdx.x; w < first; w += blockDim.x)
        if (final_logit(logits, t, w, bias, cap) == largest) first = static_cast<int>(w);
      first = combine_block(first, Smallest());
    }
    if (threadIdx.x == 0) {
      RunningLoss r = running[t];
      if (largest > r.largest) r.likeliest = static_cast<int32_t>(first_word) + first;
      const float top = fmaxf(largest, r.largest);
      r.sum = r.sum * exp(static_cast<double>(r.largest) - top) + total * exp(static_cast<double>(largest) - top);
      r.largest = top;
      const int64_t wanted = targets[t] - first_word;
      if (wanted >= 0 && wanted < logits.columns) r.wanted = final_logit(logits, t, wanted, bias, cap);
      running[t] = r;
    }
  }
}

__global__ void finish_losses(float* losses, int32_t* likeliest, const RunningLoss* running, int64_t tokens) {
  const int64_t t = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (t >= tokens) return;
  losses[t] = static_cast<float>(running[t].largest + log(running[t].sum) - running[t].wanted);
  if (likeliest != nullptr) likeliest[t] = running[t].likeliest;
}

// The logarithm of Σ exp(logit) of a row, whose logits get their bias and cap.
__device__ float finish_logits(const View& logits, int64_t t, const float* bias, float cap) {
  float largest = -INFINITY;
  for (int64_t w = threadIdx.x; w < logits.columns; w += blockDim.x) {
    const float x = final_logit(logits, t, w, bias, cap);
    write(logits, t, w, x);
    largest = fmaxf(largest, x);
  }
  largest = combine_block(largest, Largest());
  float sum = 0;
  for (int64_t w = threadIdx.x; w < logits.columns; w += blockDim.x) sum += expf(read(logits, t, w) - largest);
  return static_cast<float>(largest + log(combine_block(static_cast<double>(sum), Sum())));
}

// The gradients by the logits are in this unit, so that those of float16 are not lost.
constexpr float gradient_unit = 1.0f / 1024;

// losses[t] = KL(p ‖ q) of p = softmax(wanted) and q = softmax(logits). `gradient`, by the logits before their cap, takes the place
// of the logits' rows; its data may be null.
__global__ void diverge(float* losses, View logits, const float* bias, View wanted, const float* wanted_bias, float cap,
                        View gradient) {
  for (int64_t t = blockIdx.x; t < logits.rows; t += gridDim.x) {
    const float offset = finish_logits(logits, t, bias, cap), wanted_offset = finish_logits(wanted, t, wanted_bias, cap);
    float sum = 0;
    for (int64_t base = 0; base < logits.columns; base += blockDim.x) {
      const int64_t w = base + threadIdx.x;
      float slope = 0;
      if (w < logits.columns) {
        const float logit = read(logits, t, w), log_q = logit - offset, log_p = read(wanted, t, w) - wanted_offset;
        const float p = expf(log_p), relative = cap > 0 ? logit / cap : 0.0f;
        sum += p * (log_p - log_q);
        slope = (expf(log_q) - p) * (1.0f - relative * relative) / gradient_unit;
      }
      if (gradient.data == nullptr) continue;
      __syncthreads();  // a gradient of 16 bits is written over another thread's logit
      if (w < logits.columns) write(gradient, t, w, slope);
    }
    const double total = combine_block(static_cast<double>(sum), Sum());
    if (threadIdx.x == 0) losses[t] = static_cast<float>(total);
  }
}

}  // namespace

void CudaBackend::enqueue(const KlDivergence& o) {
  if (o.x.rows == 0) return;
  const int64_t words = o.head.rows;
  const DivergenceCut c = cut(o);
  const Tensor x = local(o.x, c.type), head = local(o.head, c.type), bias = local(o.bias, DType::f32);
  const Tensor target = local(o.target, c.target_type), target_head = local(o.target_head, c.target_type);
  const Tensor target_bias = local(o.target_bias, DType::f32);
  const Tensor logits = scratch(DType::f32, c.tokens, words), wanted = scratch(DType::f32, c.tokens, words);
  const Tensor sums = c.direct ? Tensor{} : scratch(DType::f32, c.tokens, x.columns);
  const auto data = [](const Tensor& added) { return added ? added.data<float>() : nullptr; };
  for (int64_t t = 0; t < x.rows; t += c.tokens) {
    const int64_t count = std::min(c.tokens, x.rows - t);
    const Tensor own = logits.row_range(0, count), other = wanted.row_range(0, count);
    gemm(count, words, x.columns, 1, operand(x.row_range(t, count)), transposed(head), 0, own);
    gemm(count, words, target.columns, 1, operand(target.row_range(t, count)), transposed(target_head), 0, other);
    View gradient{};
    if (o.dx) {
      gradient = view(own);
      gradient.dtype = c.type;
      gradient.stride = words * static_cast<int64_t>(sizeof(float) / dtype_size(c.type));
    }
    launch("kl_divergence", diverge, grid_of_rows(count), dim3(block_threads), 0, stream_, o.losses.data<float>() + t,
           view(own), data(bias), view(other), data(target_bias), o.softcap, gradient);
    if (!o.dx) continue;
    const Tensor dx = o.dx.row_range(t, count), product = c.direct ? dx : sums.row_range(0, count);
    gemm(count, x.columns, words, o.scale * gradient_unit, {gradient.data, gradient.dtype, gradient.stride}, operand(head),
         0, product);
    if (!c.direct) cast(stream_, view(dx), view(product));
  }
}

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
             biases ? biases.data<float>() + w : nullptr, o.softcap, targets.data<int32_t>() + t, w,
             static_cast<bool>(o.likeliest));
    }
  }
  launch("cross_entropy", finish_losses, a_thread_each, dim3(block_threads), 0, stream_, o.losses.data<float>(),
         o.likeliest ? o.likeliest.data<int32_t>() : nullptr, running, tokens);
}

}  // namespace sparsegpt::cuda
