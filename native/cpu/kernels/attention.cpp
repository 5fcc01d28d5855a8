// Attention with the register tile of float32 elements and of pairs of bfloat16 elements.
#include "cpu/kernels/attend.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

struct Floats {
  static constexpr int64_t rows = mr, columns = nr, block_queries = 4 * mr;
  static int64_t units(int64_t depth) { return depth; }
  static void pack_input(float* packed, bool of_a, const void* data, DType dtype, int64_t lane_stride, int64_t depth_stride,
                         int64_t lanes, int64_t depth) {
    pack(packed, of_a ? mr : nr, data, dtype, lane_stride, depth_stride, lanes, depth);
  }
  static void multiply(int64_t units, const float* a, const float* b, const GemmTile& tile) { micro(units, a, b, tile); }
  static float soften(float* x, int64_t count, float top) {
    vf sums = {};
    for (int64_t i = 0; i < count; i += width) {
      const vf e = vexp(load(x + i) - top);
      store(x + i, e);
      sums += e;
    }
    return horizontal_sum(sums);
  }
  static void pack_probabilities(float* packed, const float* x, int64_t stride, int64_t lanes, int64_t depth) {
    pack(packed, mr, x, DType::f32, stride, 1, lanes, depth);
  }
  static void round_row(float*, int64_t) {}
  static void pack_columns(float* packed, const float* x, int64_t stride, int64_t first, int64_t lanes, int64_t depth) {
    pack(packed, mr, x + first, DType::f32, 1, stride, lanes, depth);
  }
};

#if defined(__AVX512BF16__)
// Products of bfloat16 are exact in float32, so the scores lose nothing. The probabilities are rounded to bfloat16 and their
// sum is that of the rounded ones: a mean of V remains a mean.
struct Pairs {
  static constexpr int64_t rows = mr, columns = nr, block_queries = 4 * mr;
  static int64_t units(int64_t depth) { return (depth + 1) / 2; }
  static void pack_input(float* packed, bool of_a, const void* data, DType, int64_t lane_stride, int64_t depth_stride,
                         int64_t lanes, int64_t depth) {
    pack_pairs(packed, of_a ? mr : nr, data, lane_stride, depth_stride, lanes, depth);
  }
  static void multiply(int64_t units, const float* a, const float* b, const GemmTile& tile) {
    micro_pairs(units, a, b, tile);
  }
  static float soften(float* x, int64_t count, float top) { return soften_to_bfloat(x, count, top); }
  static void pack_probabilities(float* packed, const float* x, int64_t stride, int64_t lanes, int64_t depth) {
    pack_pairs(packed, mr, x, 2 * stride, 1, lanes, depth);
  }
  static void round_row(float* x, int64_t count) { span_from_float(x, DType::bf16, x, count); }
  static void pack_columns(float* packed, const float* x, int64_t stride, int64_t first, int64_t lanes, int64_t depth) {
    pack_pairs(packed, mr, reinterpret_cast<const uint16_t*>(x) + first, 1, 2 * stride, lanes, depth);
  }
};
#endif

}  // namespace

int64_t attention_scratch(const AttentionHead& h) {
  return has_few_queries(h) ? few_queries_scratch(h) : attention_floats<Floats>(h);
}

int64_t attention_gradient_scratch(const AttentionGradientHead& head) { return gradient_floats<Floats>(head); }

void attend_gradient(const AttentionGradientHead& head, float* scratch) {
#if defined(__AVX512BF16__)
  if (head.dtype == DType::bf16) return attend_gradient_head<Pairs>(head, scratch);
#endif
  attend_gradient_head<Floats>(head, scratch);
}

void attend(const AttentionHead& head, float* scratch) {
  if (has_few_queries(head)) return attend_few(head, scratch);
#if defined(__AVX512BF16__)
  if (head.dtype == DType::bf16) return attend_head<Pairs>(head, scratch);
#endif
  attend_head<Floats>(head, scratch);
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
