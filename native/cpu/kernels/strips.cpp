// Products of strips (strips.h) with a few rows. A tile is expanded once and multiplied with every row; a row's sums of the strip's
// sixteen rows are a register's lanes, so nothing is summed across lanes.
#include "cpu/strips.h"

#include "cpu/kernels/vec.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

// Far enough for memory to answer, near enough to stay in the first-level cache.
[[maybe_unused]] constexpr int64_t ahead = 4096;

inline uint64_t load_mask(const uint8_t* p, int64_t bytes) {
  uint64_t mask = 0;
  memcpy(&mask, p, static_cast<size_t>(bytes));
  return mask;
}

// The sums of a strip's rows, and where they go.
struct Results {
  alignas(64) float of[MultiplyStrips::most_rows][strip_rows];
};

void store_results(const StripProduct& o, int64_t strip, const Results& results) {
  const int64_t count = strip + 1 < o.strips ? strip_rows : o.last_rows;
  float sums[strip_rows];
  for (int64_t t = 0; t < o.rows; ++t) {
    memcpy(sums, results.of[t], sizeof sums);
    for (int64_t r = 0; o.bias != nullptr && r < count; ++r) sums[r] += o.bias[strip * strip_rows + r];
    const int64_t at = t * o.out_stride + strip * strip_rows;
    span_from_float(static_cast<char*>(o.out) + at * (o.dtype == DType::f32 ? 4 : 2), o.dtype, sums, count);
  }
}

#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__) && defined(__AVX512BF16__)

// A load of 64 bytes that stays one: folded into the expansion it is several times slower.
inline __m512i load_apart(const uint8_t* p) {
  __m512i v = _mm512_loadu_si512(p);
  asm("" : "+v"(v));
  return v;
}

// The sums over all bundles of bfloat16 elements with rows [first, first + rows) of x.
template <int64_t rows, bool pairs, bool masked>
const uint8_t* sum_elements(const StripProduct& o, const uint8_t* p, int64_t first, Results& results) {
  constexpr int64_t chains = rows == 1 ? 4 : rows <= 4 ? 2 : 1;
  __m512 sums[rows][chains];
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t c = 0; c < chains; ++c) sums[t][c] = _mm512_setzero_ps();
  const int64_t length = o.bundles * bundle_tiles;  // of a row, in pairs
  for (int64_t bundle = 0; bundle < o.bundles; ++bundle) {
    const uint8_t* masks = p;
    if (masked) p += 4 * bundle_tiles;
#pragma GCC unroll 8
    for (int64_t i = 0; i < bundle_tiles; ++i) {
      __builtin_prefetch(p + ahead);
      __m512i w = load_apart(p);
      if (masked) {
        const auto mask = static_cast<uint32_t>(load_mask(masks + 4 * i, 4));
        p += 2 * __builtin_popcount(mask);
        w = _mm512_maskz_expand_epi16(mask, w);
      } else {
        p += 64;
      }
      const int64_t at = bundle * bundle_tiles + i;
#pragma GCC unroll 8
      for (int64_t t = 0; t < rows; ++t) {
        __m512& sum = sums[t][i % chains];
        if (pairs) {
          const auto x = static_cast<int>(o.pairs[(first + t) * length + at]);
          sum = _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(x));
        } else {
          const float* x = o.x + 2 * ((first + t) * length + at);
          const auto high = _mm512_and_si512(w, _mm512_set1_epi32(static_cast<int>(0xffff0000)));
          sum = _mm512_fmadd_ps((__m512)_mm512_slli_epi32(w, 16), _mm512_set1_ps(x[0]), sum);
          sum = _mm512_fmadd_ps((__m512)high, _mm512_set1_ps(x[1]), sum);
        }
      }
    }
  }
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t c = 1; c < chains; ++c) sums[t][0] = _mm512_add_ps(sums[t][0], sums[t][c]);
    _mm512_store_ps(results.of[first + t], sums[t][0]);
  }
  return p;
}

// 64 codes of 4 bits as bytes.
inline __m512i spread_halves(__m256i v) {
  const __m512i wide = _mm512_cvtepu8_epi16(v);
  return _mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi16(wide, 4)), _mm512_set1_epi16(0x0f0f));
}

template <int64_t rows, int bits, bool masked>
const uint8_t* sum_codes(const StripProduct& o, const uint8_t* p, int64_t first, Results& results) {
  constexpr int64_t chains = rows <= 4 ? 2 : 1;
  __m512 sums[rows], scale = _mm512_setzero_ps(), zero = scale;
  for (int64_t t = 0; t < rows; ++t) sums[t] = _mm512_setzero_ps();
  __m512i nothing = _mm512_setzero_si512();
  const int64_t length = o.bundles * bundle_tiles;  // of a row, in fours
  int64_t until_group = 0;
  for (int64_t bundle = 0; bundle < o.bundles; ++bundle) {
    if (until_group-- == 0) {
      until_group = o.per_group - 1;
      if (o.half_scales) {
        const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        scale = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
        p += 32;
      } else {
        scale = _mm512_loadu_ps(p);
        p += 64;
      }
      const __m512i zeros = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
      p += 16;
      zero = _mm512_cvtepi32_ps(zeros);
      nothing = _mm512_mullo_epi32(zeros, _mm512_set1_epi32(0x01010101));
    }
    const uint8_t* masks = p;
    if (masked) p += 8 * bundle_tiles;
    __m512i products[rows][chains];
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t c = 0; c < chains; ++c) products[t][c] = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int64_t i = 0; i < bundle_tiles; ++i) {
      if (bits == 8 || i % 2 == 0) __builtin_prefetch(p + ahead);
      __m512i w = bits == 8 ? load_apart(p) : spread_halves(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
      if (masked) {
        const uint64_t mask = load_mask(masks + 8 * i, 8);
        const int64_t count = __builtin_popcountll(mask);
        p += bits == 8 ? count : (count + 1) / 2;
        w = _mm512_mask_expand_epi8(nothing, mask, w);
      } else {
        p += 8 * bits;
      }
      const int64_t at = bundle * bundle_tiles + i;
#pragma GCC unroll 8
      for (int64_t t = 0; t < rows; ++t) {
        int x;
        memcpy(&x, o.codes + 4 * ((first + t) * length + at), 4);
        products[t][i % chains] = _mm512_dpbusd_epi32(products[t][i % chains], w, _mm512_set1_epi32(x));
      }
    }
#pragma GCC unroll 8
    for (int64_t t = 0; t < rows; ++t) {
      const __m512i total = chains == 2 ? _mm512_add_epi32(products[t][0], products[t][chains - 1]) : products[t][0];
      const int64_t at = (first + t) * o.bundles + bundle;
      const __m512 less = _mm512_mul_ps(zero, _mm512_set1_ps(o.sums[at]));
      const __m512 part = _mm512_fmsub_ps(_mm512_cvtepi32_ps(total), _mm512_set1_ps(o.scales[at]), less);
      sums[t] = _mm512_fmadd_ps(part, scale, sums[t]);
    }
  }
  for (int64_t t = 0; t < rows; ++t) _mm512_store_ps(results.of[first + t], sums[t]);
  return p;
}

template <int64_t rows, bool masked>
const uint8_t* sum_strip(const StripProduct& o, const uint8_t* p, int64_t first, Results& results) {
  if (o.bits == 4) return sum_codes<rows, 4, masked>(o, p, first, results);
  if (o.bits == 8) return sum_codes<rows, 8, masked>(o, p, first, results);
  return o.pairs != nullptr ? sum_elements<rows, true, masked>(o, p, first, results)
                            : sum_elements<rows, false, masked>(o, p, first, results);
}

// Rows of x four at a time: the strip is in the cache when it is read again.
template <bool masked>
const uint8_t* sum_all(const StripProduct& o, const uint8_t* p, Results& results) {
  const uint8_t* end = p;
  for (int64_t first = 0; first < o.rows; first += 4) {
    switch (o.rows - first) {
      case 1: end = sum_strip<1, masked>(o, p, first, results); break;
      case 2: end = sum_strip<2, masked>(o, p, first, results); break;
      case 3: end = sum_strip<3, masked>(o, p, first, results); break;
      default: end = sum_strip<4, masked>(o, p, first, results);
    }
  }
  return end;
}

#else

#if defined(__AVX2__)
// For every byte of a mask: where each of eight elements lies among those that are kept.
struct Places {
  uint8_t of[256][8];
};
constexpr Places places() {
  Places table{};
  for (int mask = 0; mask < 256; ++mask) {
    uint8_t count = 0;
    for (int bit = 0; bit < 8; ++bit) table.of[mask][bit] = (mask >> bit & 1) != 0 ? count++ : 0x80;
  }
  return table;
}
constexpr Places expansion = places();
#endif

// The 32 elements of a tile; those that the mask lacks are zero. Reads up to 16 bytes behind the last one.
inline const uint8_t* expand_elements(uint16_t* out, uint64_t mask, const uint8_t* p) {
#if defined(__AVX2__)
  for (int64_t i = 0; i < 4; ++i, mask >>= 8) {
    const __m128i at = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(expansion.of[mask & 255]));
    // Bytes 2 i and 2 i + 1 of each; the highest bit asks for zero.
    const __m128i low = _mm_add_epi8(at, at), drop = _mm_and_si128(at, _mm_set1_epi8(static_cast<char>(0x80)));
    const __m128i first = _mm_or_si128(low, drop), second = _mm_or_si128(_mm_add_epi8(low, _mm_set1_epi8(1)), drop);
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8 * i), _mm_shuffle_epi8(v, _mm_unpacklo_epi8(first, second)));
    p += 2 * __builtin_popcount(static_cast<uint32_t>(mask & 255));
  }
#else
  memset(out, 0, 64);
  for (; mask != 0; mask &= mask - 1, p += 2) memcpy(out + __builtin_ctzll(mask), p, 2);
#endif
  return p;
}

// The 64 codes of a tile; those that the mask lacks stay as they are in `out`. `codes` may be read 8 bytes behind the last one.
inline void expand_codes(uint8_t* out, uint64_t mask, const uint8_t* codes) {
#if defined(__AVX2__)
  for (int64_t i = 0; i < 8; ++i, mask >>= 8) {
    auto* to = reinterpret_cast<__m128i*>(out + 8 * i);
    const __m128i at = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(expansion.of[mask & 255]));
    const __m128i v = _mm_shuffle_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)), at);
    _mm_storel_epi64(to, _mm_blendv_epi8(v, _mm_loadl_epi64(to), at));
    codes += __builtin_popcount(static_cast<uint32_t>(mask & 255));
  }
#else
  for (; mask != 0; mask &= mask - 1) out[__builtin_ctzll(mask)] = *codes++;
#endif
}

template <bool masked>
const uint8_t* sum_elements(const StripProduct& o, const uint8_t* p, Results& results) {
  memset(&results, 0, sizeof results);
  for (int64_t bundle = 0; bundle < o.bundles; ++bundle) {
    const uint8_t* masks = p;
    if (masked) p += 4 * bundle_tiles;
    for (int64_t i = 0; i < bundle_tiles; ++i) {
      uint16_t w[32];
      p = expand_elements(w, masked ? load_mask(masks + 4 * i, 4) : 0xffffffffu, p);
      const int64_t at = bundle * bundle_tiles + i, length = o.bundles * bundle_tiles;
      for (int64_t t = 0; t < o.rows; ++t) {
        const float* x = o.x + 2 * (t * length + at);
        for (int64_t r = 0; r < strip_rows; r += width) {
          vu both;
          memcpy(&both, w + 2 * r, sizeof both);
          const vu low = both << 16, high = both & 0xffff0000u;
          const vf sum = load(results.of[t] + r) + reinterpret_cast<const vf&>(low) * x[0];
          store(results.of[t] + r, sum + reinterpret_cast<const vf&>(high) * x[1]);
        }
      }
    }
  }
  return p;
}

// Σ of four codes and four elements of x in each lane.
inline void add_products(int32_t* sums, const uint8_t* w, const int8_t* x) {
  for (int64_t r = 0; r < strip_rows; r += width) {
    vi four, sum;
    memcpy(&four, w + 4 * r, sizeof four);
    memcpy(&sum, sums + r, sizeof sum);
    for (int c = 0; c < 4; ++c) sum += (four >> (8 * c) & 255) * static_cast<int32_t>(x[c]);
    memcpy(sums + r, &sum, sizeof sum);
  }
}

template <bool masked>
const uint8_t* sum_codes(const StripProduct& o, const uint8_t* p, Results& results) {
  memset(&results, 0, sizeof results);
  float scale[strip_rows] = {}, zero[strip_rows] = {};
  uint8_t zeros[strip_rows] = {};
  const int64_t length = o.bundles * bundle_tiles;
  for (int64_t bundle = 0; bundle < o.bundles; ++bundle) {
    if (bundle % o.per_group == 0) {
      span_to_float(scale, p, o.half_scales ? DType::bf16 : DType::f32, strip_rows);
      p += o.half_scales ? 32 : 64;
      memcpy(zeros, p, sizeof zeros);
      p += sizeof zeros;
      for (int64_t r = 0; r < strip_rows; ++r) zero[r] = zeros[r];
    }
    const uint8_t* masks = p;
    if (masked) p += 8 * bundle_tiles;
    int32_t products[MultiplyStrips::most_rows][strip_rows] = {};
    for (int64_t i = 0; i < bundle_tiles; ++i) {
      const uint64_t mask = masked ? load_mask(masks + 8 * i, 8) : ~uint64_t{0};
      const int64_t count = __builtin_popcountll(mask);
      uint8_t w[64], codes[72];
      for (int64_t r = 0; r < strip_rows; ++r) memset(w + 4 * r, zeros[r], 4);
      if (o.bits == 4) {
        for (int64_t b = 0; b < (count + 1) / 2; ++b) {
          codes[2 * b] = p[b] & 15;
          codes[2 * b + 1] = p[b] >> 4;
        }
        expand_codes(w, mask, codes);
      } else {
        expand_codes(w, mask, p);
      }
      p += o.bits == 4 ? (count + 1) / 2 : count;
      for (int64_t t = 0; t < o.rows; ++t)
        add_products(products[t], w, o.codes + 4 * (t * length + bundle * bundle_tiles + i));
    }
    for (int64_t t = 0; t < o.rows; ++t) {
      const float by = o.scales[t * o.bundles + bundle], less = o.sums[t * o.bundles + bundle];
      for (int64_t r = 0; r < strip_rows; ++r)
        results.of[t][r] += (static_cast<float>(products[t][r]) * by - zero[r] * less) * scale[r];
    }
  }
  return p;
}

template <bool masked>
const uint8_t* sum_all(const StripProduct& o, const uint8_t* p, Results& results) {
  return o.bits == 16 ? sum_elements<masked>(o, p, results) : sum_codes<masked>(o, p, results);
}

#endif

}  // namespace

void multiply_strips(const StripProduct& o) {
  const uint8_t* p = o.stream;
  for (int64_t strip = 0; strip < o.strips; ++strip) {
    Results results;
    p = o.masked ? sum_all<true>(o, p, results) : sum_all<false>(o, p, results);
    store_results(o, strip, results);
  }
}

void encode_row(int8_t* codes, float* scales, float* sums, const float* x, int64_t columns) {
  constexpr int64_t group = 32;
  for (int64_t first = 0; first < columns; first += group) {
    vf largest = {}, finite = {};  // `finite` becomes NaN of elements that are not
    for (int64_t j = 0; j < group; j += width) {
      const vf v = load(x + first + j);
      largest = vmax(largest, vmax(v, -v));
      finite += v - v;
    }
    const float scale = horizontal_max(largest) / 127.0f + horizontal_sum(finite);
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    int32_t sum = 0;
    for (int64_t j = 0; j < group; j += width) {
      float rounded[width];
      store(rounded, inverse > 0 ? round_even(load(x + first + j) * inverse) : vf{});
      for (int64_t i = 0; i < width; ++i) {
        codes[first + j + i] = static_cast<int8_t>(rounded[i]);
        sum += codes[first + j + i];
      }
    }
    scales[first / group] = scale;
    sums[first / group] = scale * static_cast<float>(sum);
  }
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
