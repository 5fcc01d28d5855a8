// Rows of packed matrices. With AVX-512 sixteen elements at a time, those of 16 bits in lanes of 32; memory bounds it either way.
#include "cpu/kernels/vec.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

#if defined(__AVX512F__)

inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }

// The bits of up to 16 columns from `column` on; `part` of them are the row's.
inline uint32_t bits_at(const uint8_t* bits, int64_t column, int64_t part) {
  const uint8_t* p = bits + column / 8;
  return part > 8 ? p[0] | static_cast<uint32_t>(p[1]) << 8 : p[0];
}

// The first `count` elements, zero behind them, without touching what lies there.
inline __m512i load_elements(const uint32_t* p, int64_t count) { return _mm512_maskz_loadu_epi32(first_lanes(count), p); }
inline __m512i load_elements(const uint16_t* p, int64_t count) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(count), p));
}
inline void store_elements(uint32_t* p, __m512i v, int64_t count) { _mm512_mask_storeu_epi32(p, first_lanes(count), v); }
inline void store_elements(uint16_t* p, __m512i v, int64_t count) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), _mm512_cvtepi32_epi16(v));
}

template <typename T>
int64_t mark(uint8_t* bits, const T* x, int64_t columns) {
  int64_t count = 0;
  for (int64_t j = 0; j < columns; j += 16) {
    const int64_t part = columns - j < 16 ? columns - j : 16;
    const __m512i v = load_elements(x + j, part);
    const uint32_t kept = _cvtmask16_u32(_mm512_test_epi32_mask(v, v));
    bits[j / 8] = static_cast<uint8_t>(kept);
    if (part > 8) bits[j / 8 + 1] = static_cast<uint8_t>(kept >> 8);
    count += __builtin_popcount(kept);
  }
  return count;
}

template <typename T>
void pack(T* values, const T* x, const uint8_t* bits, int64_t columns) {
  for (int64_t j = 0; j < columns; j += 16) {
    const int64_t part = columns - j < 16 ? columns - j : 16;
    const uint32_t kept = bits_at(bits, j, part);
    const int64_t count = __builtin_popcount(kept);
    store_elements(values, _mm512_maskz_compress_epi32(static_cast<__mmask16>(kept), load_elements(x + j, part)), count);
    values += count;
  }
}

template <typename T>
void unpack(T* out, const T* values, const uint8_t* bits, int64_t columns) {
  for (int64_t j = 0; j < columns; j += 16) {
    const int64_t part = columns - j < 16 ? columns - j : 16;
    const uint32_t kept = bits_at(bits, j, part);
    const int64_t count = __builtin_popcount(kept);
    store_elements(out + j, _mm512_maskz_expand_epi32(static_cast<__mmask16>(kept), load_elements(values, count)), part);
    values += count;
  }
}

#else

template <typename T>
int64_t mark(uint8_t* bits, const T* x, int64_t columns) {
  int64_t count = 0;
  for (int64_t j = 0; j < columns; j += 8) {
    const int64_t part = columns - j < 8 ? columns - j : 8;
    uint32_t kept = 0;
    for (int64_t b = 0; b < part; ++b) kept |= static_cast<uint32_t>(x[j + b] != 0) << b;
    bits[j / 8] = static_cast<uint8_t>(kept);
    count += __builtin_popcount(kept);
  }
  return count;
}

template <typename T>
void pack(T* values, const T* x, const uint8_t* bits, int64_t columns) {
  for (int64_t j = 0; j < columns; j += 8)
    for (uint32_t kept = bits[j / 8]; kept != 0; kept &= kept - 1) *values++ = x[j + __builtin_ctz(kept)];
}

template <typename T>
void unpack(T* out, const T* values, const uint8_t* bits, int64_t columns) {
  memset(out, 0, static_cast<size_t>(columns) * sizeof(T));
  for (int64_t j = 0; j < columns; j += 8)
    for (uint32_t kept = bits[j / 8]; kept != 0; kept &= kept - 1) out[j + __builtin_ctz(kept)] = *values++;
}

#endif

}  // namespace

int64_t mark_row(uint8_t* bits, const void* x, size_t size, int64_t columns) {
  return size == 4 ? mark(bits, static_cast<const uint32_t*>(x), columns)
                   : mark(bits, static_cast<const uint16_t*>(x), columns);
}

void pack_row(void* values, const void* x, const uint8_t* bits, size_t size, int64_t columns) {
  if (size == 4) {
    pack(static_cast<uint32_t*>(values), static_cast<const uint32_t*>(x), bits, columns);
  } else {
    pack(static_cast<uint16_t*>(values), static_cast<const uint16_t*>(x), bits, columns);
  }
}

void unpack_row(void* out, const void* values, const uint8_t* bits, size_t size, int64_t columns) {
  if (size == 4) {
    unpack(static_cast<uint32_t*>(out), static_cast<const uint32_t*>(values), bits, columns);
  } else {
    unpack(static_cast<uint16_t*>(out), static_cast<const uint16_t*>(values), bits, columns);
  }
}

int64_t count_bits(const uint8_t* bits, int64_t bytes) {
  int64_t count = 0, i = 0;
  for (; i + 8 <= bytes; i += 8) {
    uint64_t word;
    memcpy(&word, bits + i, 8);
    count += __builtin_popcountll(word);
  }
  for (; i < bytes; ++i) count += __builtin_popcount(bits[i]);
  return count;
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
