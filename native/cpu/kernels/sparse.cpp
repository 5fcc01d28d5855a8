// Products that skip the zeros of B. A panel of A lies with its rows along the vector lanes, so that an entry of B is one
// broadcast that is multiplied with one slot of the panel, the same whatever entries there are: any sparsity pattern gains.
#include "cpu/sparse.h"

#include "cpu/kernels/lanes.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

constexpr int64_t sparse_rows = 8 * width;

template <typename Multiply>
inline __attribute__((always_inline)) void add_products(const SparseChunk& b, int64_t columns, const float* panel,
                                                        float* sums, Multiply multiply) {
  constexpr int64_t vectors = sparse_rows / width;
  for (int64_t j = 0; j < columns; ++j, sums += sparse_rows) {
    vf sum[vectors];
#pragma GCC unroll 8
    for (int64_t v = 0; v < vectors; ++v) sum[v] = load(sums + v * width);
    for (uint32_t e = b.starts[j]; e < b.starts[j + 1]; ++e) {
      const float* slot = panel + b.slots[e] * sparse_rows;
      const vf value = broadcast(b.values[e]);
#pragma GCC unroll 8
      for (int64_t v = 0; v < vectors; ++v) sum[v] = multiply(sum[v], value, load(slot + v * width));
    }
#pragma GCC unroll 8
    for (int64_t v = 0; v < vectors; ++v) store(sums + v * width, sum[v]);
  }
}

}  // namespace

int64_t sparse_panel_rows() { return sparse_rows; }

void compress(const SparseChunk& out, const float* b, int64_t columns) {
  uint32_t count = 0;
  for (int64_t j = 0; j < columns; ++j, b += sparse_depth) {
    out.starts[j] = count;
#if defined(__AVX512F__)
    __m512i slots = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int64_t k = 0; k < sparse_depth; k += width) {
      const __m512 values = _mm512_loadu_ps(b + k);
      const __mmask16 kept = _mm512_cmp_ps_mask(values, _mm512_setzero_ps(), _CMP_NEQ_UQ);  // NaN is kept
      _mm512_storeu_ps(out.values + count, _mm512_maskz_compress_ps(kept, values));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.slots + count),
                          _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(kept, slots)));
      count += static_cast<uint32_t>(__builtin_popcount(_cvtmask16_u32(kept)));
      slots = _mm512_add_epi32(slots, _mm512_set1_epi32(width));
    }
#else
    for (int64_t k = 0; k < sparse_depth; ++k) {
      out.values[count] = b[k];
      out.slots[count] = static_cast<uint16_t>(k);
      count += b[k] != 0;
    }
#endif
  }
  out.starts[columns] = count;
}

void multiply_entries(const SparseChunk& b, int64_t columns, const float* panel, float* sums) {
  add_products(b, columns, panel, sums, [](vf sum, vf x, vf y) { return sum + x * y; });
}

#if defined(__AVX512BF16__)
namespace {

// The pairs that 4 elements of the depth form, in the order of their slots; the first two are those of a dense product.
constexpr int64_t quad = 4, quad_pairs = 6;
constexpr uint8_t pair_of[quad_pairs][2] = {{0, 1}, {2, 3}, {0, 2}, {1, 3}, {0, 3}, {1, 2}};

// By which of 4 elements are not zero (bit i: element i): the pair that holds them, or quad_pairs where it takes two pairs.
constexpr uint8_t pair_for[16] = {0, 0, 0, 0, 1, 2, 5, 6, 1, 4, 3, 6, 1, 6, 6, 6};

// Two bfloat16 elements in 32 bits.
float pair_bits(const float* b, const uint8_t (&pair)[2]) {
  uint32_t low, high;
  memcpy(&low, b + pair[0], 4);
  memcpy(&high, b + pair[1], 4);
  const uint32_t bits = low >> 16 | (high & 0xffff0000u);
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

}  // namespace

void compress_pairs(const SparseChunk& out, const float* b, int64_t columns) {
  uint32_t count = 0;
  for (int64_t j = 0; j < columns; ++j) {
    out.starts[j] = count;
    for (int64_t first = 0; first < sparse_pairs_depth / quad * quad_pairs; first += quad_pairs, b += quad) {
      const int kept = (b[0] != 0) | (b[1] != 0) << 1 | (b[2] != 0) << 2 | (b[3] != 0) << 3;
      const int64_t pair = pair_for[kept];
      const bool two = pair == quad_pairs;
      out.values[count] = pair_bits(b, pair_of[two ? 0 : pair]);
      out.slots[count] = static_cast<uint16_t>(first + (two ? 0 : pair));
      count += kept != 0;
      if (!two) continue;
      out.values[count] = pair_bits(b, pair_of[1]);
      out.slots[count] = static_cast<uint16_t>(first + 1);
      ++count;
    }
  }
  out.starts[columns] = count;
}

void form_pairs(float* panel, const float* units, int64_t count) {
  constexpr uint32_t high = 0xffff0000u, low = 0xffffu;
  for (int64_t u = 0; u < count; u += 2, units += 2 * sparse_rows, panel += quad_pairs * sparse_rows) {
    for (int64_t r = 0; r < sparse_rows; r += width) {
      const vu first = *reinterpret_cast<const vu*>(units + r);
      const vu second = u + 1 < count ? *reinterpret_cast<const vu*>(units + sparse_rows + r) : vu{};
      const vu pairs[quad_pairs] = {first,
                                    second,
                                    (first & low) | second << 16,
                                    first >> 16 | (second & high),
                                    (first & low) | (second & high),
                                    first >> 16 | second << 16};
#pragma GCC unroll 6
      for (int64_t p = 0; p < quad_pairs; ++p) *reinterpret_cast<vu*>(panel + p * sparse_rows + r) = pairs[p];
    }
  }
}

void multiply_pair_entries(const SparseChunk& b, int64_t columns, const float* panel, float* sums) {
  add_products(b, columns, panel, sums, add_pair_products);
}
#endif

void store_sums(const float* sums, const GemmTile& t) {
  scatter_lanes(sums, sparse_rows, t.rows, t.columns, [&](int64_t row, int64_t column, vf values, int64_t count) {
    values *= t.alpha;
    if (t.addend != nullptr) values += load_first(t.addend + row * t.addend_stride + column, count);
    const int64_t at = row * t.c_stride + column;
    if (t.dtype == DType::f32) return store_first(static_cast<float*>(t.c) + at, values, count);
    float part[width];
    store(part, values);
    span_from_float(static_cast<uint16_t*>(t.c) + at, t.dtype, part, count);
  });
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
