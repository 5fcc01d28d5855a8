// Conjugate gradients on one row.
#include "cpu/kernels/vec.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

double dot(const float* a, const float* b, int64_t count) {
  // Short sums in float32, which are added up in double.
  constexpr int64_t span = 16 * width;
  double sum = 0;
  int64_t i = 0;
  while (count - i >= span) {
    vf part = {};
    for (const int64_t end = i + span; i < end; i += width) part += load(a + i) * load(b + i);
    sum += static_cast<double>(horizontal_sum(part));
  }
  for (; i < count; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

double descend(float* x, float* residual, const float* direction, const float* image, const uint8_t* mask, float step,
               int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    x[i] += mask[i] != 0 ? 0 : step * direction[i];
    residual[i] = mask[i] != 0 ? 0 : residual[i] - step * image[i];
  }
  return dot(residual, residual, count);
}

void redirect(float* direction, const float* residual, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) direction[i] = residual[i] + factor * direction[i];
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
