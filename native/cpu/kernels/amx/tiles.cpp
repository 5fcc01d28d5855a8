// Products of bfloat16 matrices in the tile registers of AMX. A tile register has 16 rows of 64 bytes: of A 16 rows by 16 units, of B
// 16 units by 16 columns, of C 16 by 16 sums. A step multiplies two tiles of A with two of B, so that each is loaded for two products.
#include "cpu/kernels/lanes.h"
#include "cpu/kernels/tile.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

constexpr int64_t side = 16;
static_assert(tile_side == 2 * side && side == width && tile_units == side);

// What LDTILECFG reads: all registers of the full size.
struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileShapes) == 64);
constexpr TileShapes shapes;

int64_t padded(int64_t units) { return (units + tile_units - 1) / tile_units * tile_units; }

}  // namespace

void pack_tile_rows(float* packed, const void* data, int64_t row_stride, int64_t depth_stride, int64_t rows, int64_t depth) {
  const int64_t step = 2 * tile_units;
  const auto at = [&](int64_t row, int64_t p) {
    return static_cast<const char*>(data) + (row * row_stride + p * depth_stride) * 2;
  };
  constexpr int64_t block = tile_side * tile_units;
  for (int64_t first = 0; first < rows; first += tile_side) {
    const int64_t count = rows - first < tile_side ? rows - first : tile_side;
    if (depth_stride == 1) {
      for (int64_t i = 0; i < count; ++i) {
        float* out = packed + i * tile_units;
        for (int64_t p = 0; p < depth; p += step, out += block) {
          const int64_t left = depth - p;
          const auto mask = left < step ? (__mmask32{1} << left) - 1 : ~__mmask32{0};
          _mm512_storeu_si512(out, _mm512_maskz_loadu_epi16(mask, at(first + i, p)));
        }
      }
    } else {
      float* out = packed;
      for (int64_t p = 0; p < depth; p += step, out += block) {
        const int64_t left = depth - p < step ? depth - p : step;
        alignas(64) float columns[tile_units][tile_side];  // a unit of all rows
        for (int64_t u = (left + 1) / 2; u < tile_units; ++u) memset(columns[u], 0, sizeof *columns);
        avx512bf16::pack_pairs(columns[0], tile_side, at(first, p), row_stride, depth_stride, count, left);
        for (int64_t half = 0; half < 2; ++half) {
          vf square[side];
#pragma GCC unroll 16
          for (int64_t u = 0; u < side; ++u) square[u] = load(columns[u] + half * side);
          transpose_square(square);
#pragma GCC unroll 16
          for (int64_t i = 0; i < side; ++i) store(out + (half * side + i) * tile_units, square[i]);
        }
      }
    }
    packed += padded((depth + 1) / 2) * tile_side;
  }
}

void pack_tile_columns(float* packed, const void* data, int64_t column_stride, int64_t depth_stride, int64_t columns,
                       int64_t depth) {
  const int64_t units = (depth + 1) / 2, all = padded(units);
  if (all == units) return avx512bf16::pack_pairs(packed, tile_side, data, column_stride, depth_stride, columns, depth);
  for (int64_t first = 0; first < columns; first += tile_side, packed += all * tile_side) {
    const int64_t count = columns - first < tile_side ? columns - first : tile_side;
    avx512bf16::pack_pairs(packed, tile_side, static_cast<const char*>(data) + first * column_stride * 2, column_stride,
                           depth_stride, count, depth);
    memset(packed + units * tile_side, 0, static_cast<size_t>((all - units) * tile_side) * sizeof(float));
  }
}

void open_tiles() { _tile_loadconfig(&shapes); }

void close_tiles() { _tile_release(); }

void micro_tiles(int64_t units, const float* a, const float* b, const GemmTile& tile) {
  prefetch_tile(tile);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t u = 0; u < units; u += tile_units) {
    // The panel of B stays in L1 for the next tiles, that of A does not.
    _tile_stream_loadd(4, a, 64);
    _tile_loadd(6, b, 128);
    _tile_loadd(7, b + side, 128);
    _tile_dpbf16ps(0, 4, 6);
    _tile_stream_loadd(5, a + side * tile_units, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    a += tile_side * tile_units;
    b += tile_side * tile_units;
  }
  alignas(64) vf sums[tile_side][2];
  _tile_stored(0, &sums[0][0], 128);
  _tile_stored(1, &sums[0][1], 128);
  _tile_stored(2, &sums[side][0], 128);
  _tile_stored(3, &sums[side][1], 128);
  store_tile(sums, tile);
}

double tile_chains(int64_t rounds) {
  open_tiles();
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  close_tiles();
  return static_cast<double>(rounds) * 4 * (2 * side * side * 2 * tile_units);
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
