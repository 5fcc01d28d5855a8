// C = alpha * A · B (+ C or a bias row) on the CPU, as in BLIS: panels packed into the order in which the register tile of the
// selected instruction-set level reads them. Operands of any float type are multiplied as float32; where the level has a dot
// product of bfloat16 pairs or tile registers, two bfloat16 operands are multiplied as they are. Sums are float32.
// The result does not depend on the number of threads.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "cpu/kernel.h"

namespace sparsegpt::cpu {

// A matrix operand by its strides, so a transpose costs nothing. Strides count elements.
struct Operand {
  const void* data;
  DType dtype;
  int64_t row_stride;
  int64_t column_stride;

  const void* at(int64_t row, int64_t column) const {
    return static_cast<const char*>(data) +
           (row * row_stride + column * column_stride) * static_cast<int64_t>(dtype_size(dtype));
  }
  Operand transposed() const { return {data, dtype, column_stride, row_stride}; }
};

inline Operand operand(const Tensor& t) { return {t.bytes(), t.dtype, t.stride, 1}; }
inline Operand layout(const Tensor& t) { return {nullptr, t.dtype, t.stride, 1}; }
inline Operand operand(const float* data, int64_t stride) { return {data, DType::f32, stride, 1}; }

inline int64_t divide_up(int64_t length, int64_t part) { return (length + part - 1) / part; }

// Where part i of `parts` equal ones begins.
inline int64_t cut(int64_t length, int64_t i, int64_t parts) { return length * i / parts; }

enum class Triangle { full, upper };

struct Gemm {
  int64_t m, n, k;
  Operand a;  // [m, k]
  Operand b;  // [k, n]
  void* c;  // [m, n], rows c_stride apart
  int64_t c_stride;
  float alpha = 1;
  bool accumulate = false;  // C += instead of C =; C is float32
  Triangle triangle = Triangle::full;  // upper: only the entries j >= i are written
  const float* bias = nullptr;  // [n], added to every row; not with accumulate
  DType dtype = DType::f32;  // of C
  bool sparse_b = false;  // B may have many zeros, which are then skipped; see sparse.h
};

// What becomes of the sums of a register tile: C = alpha * sums + addend.
struct GemmTile {
  int64_t rows, columns;  // at most those of RegisterTile
  int64_t diagonal;  // only entries j >= i + diagonal are written
  float alpha;
  const float* addend;  // [rows, columns] with rows `addend_stride` apart (0: the same row for all), or null; may be C
  int64_t addend_stride;
  void* c;
  DType dtype;  // of C
  int64_t c_stride;
};

// BLIS's micro-kernel keeps the sums of so many rows of A and columns of B in registers.
struct RegisterTile {
  int64_t rows, columns;
};
SPARSEGPT_KERNEL(register_tile, RegisterTile, void);

// Packs A or B as float32 into panels of `panel` lanes (rows of A or columns of B, as many as the register tile has),
// [panel][unit][lane], where a unit is one step of the depth. Lanes that fill the last panel hold anything.
SPARSEGPT_KERNEL(pack, void, float* packed, int64_t panel, const void* data, DType dtype, int64_t lane_stride,
                 int64_t depth_stride, int64_t lanes, int64_t depth);
// The tile's sums over the depth of A panel · B panel.
SPARSEGPT_KERNEL(micro, void, int64_t units, const float* a, const float* b, const GemmTile& tile);
// The same for two bfloat16 operands: a unit is two steps of the depth, two elements in the 32 bits of a float, and zero behind
// an odd depth.
SPARSEGPT_PAIRS_KERNEL(pack_pairs, void, float* packed, int64_t panel, const void* data, int64_t lane_stride,
                       int64_t depth_stride, int64_t lanes, int64_t depth);
SPARSEGPT_PAIRS_KERNEL(micro_pairs, void, int64_t units, const float* a, const float* b, const GemmTile& tile);

// The same in tile registers, whose tile of C has so many rows and columns; they take so many units at once.
constexpr int64_t tile_side = 32, tile_units = 16;
// Packs rows of A, [panel][tile_units][row][unit], or columns of B, as pack_pairs(). There are zeros behind the depth up to a whole
// number of tile_units.
using PackTiles = void(float* packed, const void* data, int64_t lane_stride, int64_t depth_stride, int64_t lanes,
                       int64_t depth);
SPARSEGPT_TILES_KERNEL(pack_tile_rows, void, float* packed, const void* data, int64_t row_stride, int64_t depth_stride,
                       int64_t rows, int64_t depth);
SPARSEGPT_TILES_KERNEL(pack_tile_columns, void, float* packed, const void* data, int64_t column_stride, int64_t depth_stride,
                       int64_t columns, int64_t depth);
// A thread opens the registers before it multiplies, and closes them: else the system saves them whenever it switches threads.
SPARSEGPT_TILES_KERNEL(open_tiles, void, void);
SPARSEGPT_TILES_KERNEL(close_tiles, void, void);
SPARSEGPT_TILES_KERNEL(micro_tiles, void, int64_t units, const float* a, const float* b, const GemmTile& tile);

// Whether bfloat16 elements are multiplied as they are, in pairs.
inline bool multiplies_pairs(Level level, const Gemm& g) {
  return micro_pairs[level] != nullptr && g.a.dtype == DType::bf16 && g.b.dtype == DType::bf16;
}

// Whether that is done in tile registers.
inline bool multiplies_tiles(Level level, const Gemm& g) {
  return micro_tiles[level] != nullptr && multiplies_pairs(level, g);
}

// Packs `lanes` rows of the operand and `depth` steps along its columns, from (row, step) on, as pairs or as float32.
inline void pack_panels(Level level, bool pairs, float* packed, int64_t panel, const Operand& rows, int64_t row,
                        int64_t lanes, int64_t step, int64_t depth) {
  const void* data = rows.at(row, step);
  if (pairs) {
    pack_pairs[level](packed, panel, data, rows.row_stride, rows.column_stride, lanes, depth);
  } else {
    pack[level](packed, panel, data, rows.dtype, rows.row_stride, rows.column_stride, lanes, depth);
  }
}

void gemm(ThreadPool& pool, Level level, const Gemm& g);

// The scratch memory that it takes at most, in bytes. The addresses in `g` are not looked at.
size_t gemm_scratch(Level level, int threads, const Gemm& g);

}  // namespace sparsegpt::cpu
