// Kernels on one row of activations.
#include <cmath>

#include "cpu/kernels/vec.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

float sum_of_squares(const float* x, int64_t count, float mean) {
  vf sums = {};
  int64_t i = 0;
  for (; i + width <= count; i += width) {
    const vf v = load(x + i) - mean;
    sums += v * v;
  }
  float rest = 0;
  for (; i < count; ++i) rest += (x[i] - mean) * (x[i] - mean);
  return horizontal_sum(sums) + rest;
}

float sum(const float* x, int64_t count) {
  vf sums = {};
  int64_t i = 0;
  for (; i + width <= count; i += width) sums += load(x + i);
  float rest = 0;
  for (; i < count; ++i) rest += x[i];
  return horizontal_sum(sums) + rest;
}

}  // namespace

void layer_norm(float* out, const float* x, const float* weight, const float* bias, int64_t count, float epsilon) {
  const float mean = sum(x, count) / static_cast<float>(count);
  const float variance = sum_of_squares(x, count, mean) / static_cast<float>(count);
  const float scale = 1.0f / sqrtf(variance + epsilon);
  for (int64_t i = 0; i < count; ++i) out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

void rms_norm(float* out, const float* x, const float* weight, int64_t count, float epsilon) {
  const float scale = 1.0f / sqrtf(sum_of_squares(x, count, 0) / static_cast<float>(count) + epsilon);
  for (int64_t i = 0; i < count; ++i) out[i] = x[i] * scale * weight[i];
}

void rotary(float* x, const float* cosine, const float* sine, int64_t pairs, bool interleaved) {
  if (interleaved) {
    for (int64_t i = 0; i < pairs; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cosine[i] - b * sine[i];
      x[2 * i + 1] = b * cosine[i] + a * sine[i];
    }
    return;
  }
  for (int64_t i = 0; i < pairs; ++i) {
    const float a = x[i], b = x[i + pairs];
    x[i] = a * cosine[i] - b * sine[i];
    x[i + pairs] = b * cosine[i] + a * sine[i];
  }
}

void log_sum_exp(const float* x, int64_t count, float* largest, double* sum) {
  vf top = broadcast(x[0]);
  int64_t i = 0;
  for (; i + width <= count; i += width) top = vmax(top, load(x + i));
  float best = horizontal_max(top);
  for (; i < count; ++i) best = x[i] > best ? x[i] : best;
  double total = 0;
  vf sums = {};
  for (i = 0; i + width <= count; i += width) {
    sums += vexp(load(x + i) - best);
    if ((i & 1023) == 0) {
      total += horizontal_sum(sums);
      sums = vf{};
    }
  }
  total += horizontal_sum(sums);
  for (; i < count; ++i) total += std::exp(static_cast<double>(x[i] - best));
  *largest = best;
  *sum = total;
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
