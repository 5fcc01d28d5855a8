// Strips on the CPU (core/operations.h says what they are): one stream of bytes that is read from front to back, in the order in which
// the registers want it.
//
// A tile is what one register holds: of 16 rows two neighbouring bfloat16 elements, or four codes, row after row. Eight tiles of 16 or
// 32 columns form a bundle: their masks, of 32 or 64 bits, then their elements, tile after tile: those that the mask has, or without
// masks all. Codes of 4 bits are two in a byte, the low half first; a tile begins with a byte of its own. In front of the first bundle
// of a group of columns stand the scales of the 16 rows, then their zeros, a byte each. What lies beyond the matrix is masked out, or
// has the code of the zero.
#pragma once

#include "core/dtype.h"
#include "core/operations.h"
#include "cpu/kernel.h"

namespace sparsegpt::cpu {

constexpr int64_t bundle_tiles = 8;
inline int64_t tile_columns(const StripForm& form) { return form.bits == 16 ? 2 : 4; }
inline int64_t bundle_columns(const StripForm& form) { return bundle_tiles * tile_columns(form); }
inline int64_t bundle_count(const StripForm& form) {
  return (form.columns + bundle_columns(form) - 1) / bundle_columns(form);
}

// Some strips of a matrix, multiplied with the rows of x. Rows of x are as long as all bundles, with zeros behind the last column.
struct StripProduct {
  int64_t rows;  // of x
  int64_t strips, last_rows;  // the last strip has rows [0, last_rows)
  int64_t bundles, per_group;  // bundles of a row, and of a group
  int bits;
  bool masked, half_scales;
  const uint8_t* stream;  // of the first strip
  const float* x;  // f32; with bits 16
  const uint32_t* pairs;  // pairs of bf16 elements; in the place of x where the level multiplies them
  const int8_t* codes;  // x in 8 bits; with bits < 16
  const float *scales, *sums;  // [rows, bundles]: the scale of x's codes, and that times their sum
  const float* bias;  // of the first strip's first row, or null
  void* out;  // [rows, 16 strips], float of the type `dtype`
  DType dtype;
  int64_t out_stride;
};
SPARSEGPT_KERNEL(multiply_strips, void, const StripProduct& o);
// x [columns], which ends with whole groups of 32, as codes of 8 bits with a scale for each group, and that times the sum of its codes.
SPARSEGPT_KERNEL(encode_row, void, int8_t* codes, float* scales, float* sums, const float* x, int64_t columns);

}  // namespace sparsegpt::cpu
