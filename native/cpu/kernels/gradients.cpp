// Kernels of gradients and of the optimizer, on contiguous elements.
#include <cmath>

#include "core/operations.h"
#include "cpu/kernels/vec.h"
#include "cpu/optimizer.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

// An activation's value and derivative.
struct Slope {
  vf value, derivative;
};

Slope slope(vf x, Activation kind) {
  switch (kind) {
    case Activation::relu: return {vmax(vf{}, x), select(x > 0.0f, broadcast(1.0f), vf{})};
    case Activation::gelu: {
      const vf tail = normal_tail(x), below = select(x > 0.0f, 1.0f - tail, tail);
      return {x * below, below + x * 0.3989422804f * vexp(-0.5f * x * x)};
    }
    case Activation::gelu_tanh: {
      const vf share = 1.0f / (1.0f + vexp(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
      return {x * share, share + x * share * (1.0f - share) * 1.5957691216057308f * (1.0f + 0.134145f * x * x)};
    }
    case Activation::silu: {
      const vf share = 1.0f / (1.0f + vexp(-x));
      return {x * share, share + x * share * (1.0f - share)};
    }
    case Activation::relu2: {
      const vf above = vmax(vf{}, x);
      return {above * above, 2.0f * above};
    }
    case Activation::clamped_swish: {
      const vf clamped = vmin(broadcast(7.0f), x), share = 1.0f / (1.0f + vexp(-1.702f * clamped));
      return {clamped * share, select(x > 7.0f, vf{}, share + 1.702f * x * share * (1.0f - share))};
    }
    case Activation::clamped_linear: {
      const vf clamped = vmax(broadcast(-7.0f), vmin(broadcast(7.0f), x));
      return {1.0f + clamped, select((x > 7.0f) | (x < -7.0f), vf{}, broadcast(1.0f))};
    }
  }
  return {x, broadcast(1.0f)};
}

// body(load, store) for every vector: load(p) takes its elements, store(p, v) puts them.
template <typename Body>
inline void for_vectors(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + width <= count; i += width)
    body([&](const float* p) { return load(p + i); }, [&](float* p, vf v) { store(p + i, v); });
  if (i < count)
    body([&](const float* p) { return load_part(p + i, count - i); },
         [&](float* p, vf v) { store_part(p + i, v, count - i); });
}

}  // namespace

void activate_gradient(float* dy, const float* x, int64_t count, Activation kind) {
  for_vectors(count, [&](auto get, auto put) { put(dy, get(dy) * slope(get(x), kind).derivative); });
}

void gate_gradient(float* dy, float* dup, const float* x, const float* up, int64_t count, Activation kind) {
  for_vectors(count, [&](auto get, auto put) {
    const Slope f = slope(get(x), kind);
    const vf gradient = get(dy);
    put(dup, gradient * f.value);
    put(dy, gradient * get(up) * f.derivative);
  });
}

float row_dot(const float* x, const float* y, int64_t count) {
  vf sums = {};
  for_vectors(count, [&](auto get, auto) { sums += get(x) * get(y); });
  return horizontal_sum(sums);
}

void norm_gradient(float* dx, float* dweight, float* dbias, const float* x, const float* dy, const float* weight,
                   int64_t count, float epsilon) {
  const float inverse = 1.0f / static_cast<float>(count);
  float mean = 0;
  if (dbias != nullptr) {
    vf sums = {};
    for_vectors(count, [&](auto get, auto) { sums += get(x); });
    mean = horizontal_sum(sums) * inverse;
  }
  // Behind the last element both operands read as zero, so a mean that is not zero is taken off element by element.
  vf squares = {}, slopes = {}, products = {};
  int64_t i = 0;
  for (; i + width <= count; i += width) {
    const vf centred = load(x + i) - mean, g = load(dy + i) * load(weight + i);
    squares += centred * centred;
    slopes += g;
    products += g * centred;
  }
  float square = horizontal_sum(squares), slope_sum = horizontal_sum(slopes), product = horizontal_sum(products);
  for (; i < count; ++i) {
    const float centred = x[i] - mean, g = dy[i] * weight[i];
    square += centred * centred;
    slope_sum += g;
    product += g * centred;
  }
  const float scale = 1.0f / sqrtf(square * inverse + epsilon);
  const float along = product * inverse * scale * scale, shift = dbias != nullptr ? slope_sum * inverse : 0.0f;
  for_vectors(count, [&](auto get, auto put) {
    const vf centred = get(x) - mean, gradient = get(dy);
    put(dweight, get(dweight) + gradient * centred * scale);
    if (dbias != nullptr) put(dbias, get(dbias) + gradient);
    put(dx, scale * (gradient * get(weight) - shift - centred * along));
  });
}

float relative_error(float* dx, const float* x, const float* target, int64_t count, float scale, float typical_norm) {
  vf gaps = {}, norms = {};
  for_vectors(count, [&](auto get, auto) {
    const vf wanted = get(target), gap = get(x) - wanted;
    gaps += gap * gap;
    norms += wanted * wanted;
  });
  const float whole = horizontal_sum(norms) + 1e-30f;
  const bool large = typical_norm > 0 && typical_norm < whole;
  const float norm = large ? __builtin_sqrtf(typical_norm) * __builtin_sqrtf(whole) : whole;
  if (dx != nullptr) {
    const float factor = 2.0f * scale / norm;
    for_vectors(count, [&](auto get, auto put) { put(dx, factor * (get(x) - get(target))); });
  }
  return horizontal_sum(gaps) / norm;
}

double divergence(float* logits, const float* target, int64_t count, double offset, double target_offset, float softcap,
                  float scale) {
  double total = 0;
  const auto shift = static_cast<float>(offset), target_shift = static_cast<float>(target_offset);
  const float inverse = softcap > 0 ? 1.0f / softcap : 0.0f;
  for (int64_t first = 0; first < count; first += 4096) {
    const int64_t part = count - first < 4096 ? count - first : 4096;
    vf sums = {};
    int64_t i = first;
    const auto term = [&](vf own, vf wanted) {
      const vf q = vexp(own - shift), p = vexp(wanted - target_shift);
      sums += p * ((wanted - target_shift) - (own - shift));
      const vf relative = own * inverse;
      return scale * (q - p) * (1.0f - relative * relative);
    };
    for (; i + width <= first + part; i += width) store(logits + i, term(load(logits + i), load(target + i)));
    if (const int64_t left = first + part - i; left > 0) {
      // Behind the last element there is no word: its probability is zero.
      vf own = broadcast(-1e30f), wanted = own;
      for (int64_t j = 0; j < left; ++j) {
        own[j] = logits[i + j];
        wanted[j] = target[i + j];
      }
      const vf before = sums, gradient = term(own, wanted);
      for (int64_t j = left; j < width; ++j) sums[j] = before[j];
      store_part(logits + i, gradient, left);
    }
    total += horizontal_sum(sums);
  }
  return total;
}

void adam(float* weight, float* first, float* second, const float* gradient, int64_t count, const AdamRates& r) {
  for_vectors(count, [&](auto get, auto put) {
    const vf g = get(gradient), w = get(weight);
    const vf m = r.beta1 * get(first) + (1.0f - r.beta1) * g, v = r.beta2 * get(second) + (1.0f - r.beta2) * g * g;
    put(first, m);
    put(second, v);
    vf root = v * r.second_scale;
    for (int64_t i = 0; i < width; ++i) root[i] = sqrtf(root[i]);
    const vf next = w - r.rate * (m * r.first_scale / (root + r.epsilon) + r.decay * w);
    put(weight, r.keep_zeros ? select(w == 0.0f, vf{}, next) : next);
  });
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
