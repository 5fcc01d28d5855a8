// Operations on one element at a time, in place. They are bound by memory: each element is read and written once.
#include "cuda/cuda_backend.h"
#include "cuda/each.cuh"
#include "cuda/element.cuh"

namespace sparsegpt::cuda {

namespace {

__device__ float apply(float x, Activation kind) {
  switch (kind) {
    case Activation::relu: return 0.0f > x ? 0.0f : x;  // in this order NaN stays NaN
    case Activation::gelu: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case Activation::gelu_tanh:
      // x / 2 · (1 + tanh u) = x / (1 + exp(-2u)), which keeps its accuracy where tanh u nears -1.
      return x / (1.0f + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
    case Activation::silu: return x / (1.0f + expf(-x));
    case Activation::relu2: return 0.0f > x ? 0.0f : x * x;
    case Activation::clamped_swish: {
      const float clamped = x > 7.0f ? 7.0f : x;
      return clamped / (1.0f + expf(-1.702f * clamped));
    }
    case Activation::clamped_linear: return 1.0f + (x > 7.0f ? 7.0f : x < -7.0f ? -7.0f : x);
  }
  return x;
}

struct ActivateElement {
  View x;
  Activation kind;
  __device__ void operator()(int64_t i, int64_t j) const { write(x, i, j, apply(read(x, i, j), kind)); }
};

struct GateElement {
  View x, up;
  Activation kind;
  __device__ void operator()(int64_t i, int64_t j) const { write(x, i, j, apply(read(x, i, j), kind) * read(up, i, j)); }
};

struct AddElement {
  View x, y;
  __device__ void operator()(int64_t i, int64_t j) const { write(x, i, j, read(x, i, j) + read(y, i, j)); }
};

struct ScaleElement {
  View x;
  float factor;
  __device__ void operator()(int64_t i, int64_t j) const { write(x, i, j, read(x, i, j) * factor); }
};

struct SoftcapElement {
  View x;
  float cap;
  __device__ void operator()(int64_t i, int64_t j) const { write(x, i, j, cap * tanhf(read(x, i, j) / cap)); }
};

}  // namespace

void CudaBackend::enqueue(const Activate& o) {
  for_elements("activate", stream_, o.x.rows, o.x.columns, ActivateElement{view(o.x), o.kind});
}

void CudaBackend::enqueue(const Gate& o) {
  const Tensor up = local(o.up);
  for_elements("gate", stream_, o.x.rows, o.x.columns, GateElement{view(o.x), view(up), o.kind});
}

void CudaBackend::enqueue(const Add& o) {
  const Tensor y = local(o.y);
  for_elements("add", stream_, o.x.rows, o.x.columns, AddElement{view(o.x), view(y)});
}

void CudaBackend::enqueue(const Scale& o) {
  for_elements("scale", stream_, o.x.rows, o.x.columns, ScaleElement{view(o.x), o.factor});
}

void CudaBackend::enqueue(const Softcap& o) {
  for_elements("softcap", stream_, o.x.rows, o.x.columns, SoftcapElement{view(o.x), o.cap});
}

}  // namespace sparsegpt::cuda
