// Elementwise kernels on contiguous spans.
#include "core/operations.h"
#include "cpu/kernels/vec.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

// x Φ(x), Φ being the normal distribution's share below x, from the smaller of the shares on both sides.
vf gelu(vf x) {
  const vf tail = normal_tail(x);
  return x * select(x > 0.0f, 1.0f - tail, tail);
}

vf apply(vf x, Activation kind) {
  switch (kind) {
    case Activation::relu: return vmax(vf{}, x);  // in this order NaN stays NaN
    case Activation::gelu: return gelu(x);
    case Activation::gelu_tanh:
      // x / 2 · (1 + tanh u) = x / (1 + exp(-2u)), which keeps its accuracy where tanh u nears -1.
      return x / (1.0f + vexp(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
    case Activation::silu: return x / (1.0f + vexp(-x));
    case Activation::relu2: {
      const vf above = vmax(vf{}, x);
      return above * above;
    }
    case Activation::clamped_swish: {
      const vf clamped = vmin(broadcast(7.0f), x);
      return clamped / (1.0f + vexp(-1.702f * clamped));
    }
    case Activation::clamped_linear: return 1.0f + vmax(broadcast(-7.0f), vmin(broadcast(7.0f), x));
  }
  return x;
}

}  // namespace

void to_float(float* out, const void* in, DType dtype, int64_t count) { span_to_float(out, in, dtype, count); }

void from_float(void* out, DType dtype, const float* in, int64_t count) { span_from_float(out, dtype, in, count); }

void activate(float* x, int64_t count, Activation kind) {
  int64_t i = 0;
  for (; i + width <= count; i += width) store(x + i, apply(load(x + i), kind));
  if (i < count) store_part(x + i, apply(load_part(x + i, count - i), kind), count - i);
}

void gate(float* x, const float* up, int64_t count, Activation kind) {
  int64_t i = 0;
  for (; i + width <= count; i += width) store(x + i, apply(load(x + i), kind) * load(up + i));
  if (i < count) {
    const vf gated = apply(load_part(x + i, count - i), kind) * load_part(up + i, count - i);
    store_part(x + i, gated, count - i);
  }
}

void add(float* x, const float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] += y[i];
}

void scale(float* x, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

void softcap(float* x, float cap, int64_t count) {
  const float inverse = 1.0f / cap;
  int64_t i = 0;
  for (; i + width <= count; i += width) store(x + i, cap * vtanh(load(x + i) * inverse));
  if (i < count) store_part(x + i, cap * vtanh(load_part(x + i, count - i) * inverse), count - i);
}

void add_squares(float* sums, const float* x, float scale, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] += scale * x[i] * x[i];
}

bool all_finite(const float* x, int64_t count) {
  // x - x is 0 for finite x and NaN otherwise.
  vf sums = {};
  int64_t i = 0;
  for (; i + width <= count; i += width) {
    const vf v = load(x + i);
    sums += v - v;
  }
  float rest = 0;
  for (; i < count; ++i) rest += x[i] - x[i];
  return horizontal_sum(sums) + rest == 0.0f;
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
