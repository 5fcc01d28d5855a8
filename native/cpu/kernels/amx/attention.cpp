// Attention of bfloat16 elements in tile registers.
#include "cpu/attention.h"
#include "cpu/spans.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {
using avx512bf16::softcap;
}

#include "cpu/kernels/attend.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

// As Pairs in kernels/attention.cpp.
struct Tiles {
  static constexpr int64_t rows = tile_side, columns = tile_side, block_queries = 2 * tile_side;

  static int64_t units(int64_t depth) { return round_up((depth + 1) / 2, tile_units); }
  static void pack_input(float* packed, bool of_a, const void* data, DType, int64_t lane_stride, int64_t depth_stride,
                         int64_t lanes, int64_t depth) {
    (of_a ? pack_tile_rows : pack_tile_columns)(packed, data, lane_stride, depth_stride, lanes, depth);
  }
  static void multiply(int64_t units, const float* a, const float* b, const GemmTile& tile) {
    micro_tiles(units, a, b, tile);
  }
  static float soften(float* x, int64_t count, float top) { return soften_to_bfloat(x, count, top); }
  static void pack_probabilities(float* packed, const float* x, int64_t stride, int64_t lanes, int64_t depth) {
    pack_tile_rows(packed, x, 2 * stride, 1, lanes, depth);
  }
  static void round_row(float* x, int64_t count) { span_from_float(x, DType::bf16, x, count); }
  static void pack_columns(float* packed, const float* x, int64_t stride, int64_t first, int64_t lanes, int64_t depth) {
    pack_tile_rows(packed, reinterpret_cast<const uint16_t*>(x) + first, 1, 2 * stride, lanes, depth);
  }
};

}  // namespace

int64_t attention_scratch(const AttentionHead& h) {
  if (h.dtype != DType::bf16 || has_few_queries(h)) return avx512bf16::attention_scratch(h);
  return attention_floats<Tiles>(h);
}

int64_t attention_gradient_scratch(const AttentionGradientHead& h) {
  return h.dtype == DType::bf16 ? gradient_floats<Tiles>(h) : avx512bf16::attention_gradient_scratch(h);
}

void attend(const AttentionHead& head, float* scratch) {
  if (head.dtype != DType::bf16 || has_few_queries(head)) return avx512bf16::attend(head, scratch);
  open_tiles();
  attend_head<Tiles>(head, scratch);
  close_tiles();
}

void attend_gradient(const AttentionGradientHead& head, float* scratch) {
  if (head.dtype != DType::bf16) return avx512bf16::attend_gradient(head, scratch);
  open_tiles();
  attend_gradient_head<Tiles>(head, scratch);
  close_tiles();
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
