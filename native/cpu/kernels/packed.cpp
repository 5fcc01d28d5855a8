// Rows of packed matrices. With AVX-512 sixteen elements at a time, those of 16 bits in lanes of 32; memory bounds it either way.
#include "cpu/kernels/vec.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

// Eight codes take as many bytes as each has bits.
template <int bits>
void pack_stream(uint8_t* packed, const uint8_t* codes, int64_t count) {
  for (int64_t i = 0; i < count; i += 8, packed += bits) {
    const int64_t some = count - i < 8 ? count - i : 8;
    uint64_t word = 0;
    for (int64_t k = 0; k < some; ++k) word |= static_cast<uint64_t>(codes[i + k]) << (k * bits);
    memcpy(packed, &word, some == 8 ? bits : static_cast<size_t>((some * bits + 7) / 8));
  }
}

template <int bits>
void unpack_stream(uint8_t* codes, const uint8_t* packed, int64_t count) {
  constexpr uint8_t mask = (1 << bits) - 1;
  int64_t i = 0;
  if constexpr (8 % bits == 0) {
    constexpr int64_t some = 8 / bits;
    for (; i < count / some; ++i)
      for (int64_t k = 0; k < some; ++k) codes[i * some + k] = static_cast<uint8_t>(packed[i] >> (k * bits)) & mask;
    for (int64_t k = 0; k < count % some; ++k) codes[i * some + k] = static_cast<uint8_t>(packed[i] >> (k * bits)) & mask;
    return;
  }
  for (; i + 8 <= count; i += 8, packed += bits) {
    uint64_t word = 0;
    memcpy(&word, packed, bits);
    for (int64_t k = 0; k < 8; ++k) codes[i + k] = static_cast<uint8_t>(word >> (k * bits)) & mask;
  }
  uint64_t word = 0;
  memcpy(&word, packed, static_cast<size_t>(((count - i) * bits + 7) / 8));
  for (int64_t k = 0; i + k < count; ++k) codes[i + k] = static_cast<uint8_t>(word >> (k * bits)) & mask;
}

#if defined(__AVX2__) && !defined(__AVX512F__)

// For every byte of a bitmask where its columns find their codes, 0x80 where they have none.
struct Places {
  uint8_t of[256][8];
  constexpr Places() : of() {
    for (int marked = 0; marked < 256; ++marked) {
      uint8_t next = 0;
      for (int k = 0; k < 8; ++k) of[marked][k] = (marked >> k & 1) != 0 ? next++ : uint8_t{0x80};
    }
  }
};
constexpr Places places;

#endif

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

void pack_codes(uint8_t* packed, const uint8_t* codes, int bits, int64_t count) {
  switch (bits) {
    case 2: return pack_stream<2>(packed, codes, count);
    case 3: return pack_stream<3>(packed, codes, count);
    case 4: return pack_stream<4>(packed, codes, count);
    case 5: return pack_stream<5>(packed, codes, count);
    case 6: return pack_stream<6>(packed, codes, count);
    case 7: return pack_stream<7>(packed, codes, count);
    default: memcpy(packed, codes, static_cast<size_t>(count));
  }
}

void unpack_codes(uint8_t* codes, const uint8_t* packed, int bits, int64_t count) {
  switch (bits) {
    case 2: return unpack_stream<2>(codes, packed, count);
    case 3: return unpack_stream<3>(codes, packed, count);
    case 4: return unpack_stream<4>(codes, packed, count);
    case 5: return unpack_stream<5>(codes, packed, count);
    case 6: return unpack_stream<6>(codes, packed, count);
    case 7: return unpack_stream<7>(codes, packed, count);
    default: memcpy(codes, packed, static_cast<size_t>(count));
  }
}

void expand_codes(uint8_t* out, const uint8_t* codes, const uint8_t* marked, int64_t columns) {
  int64_t j = 0;
#if defined(__AVX512F__)
  for (; j < columns; j += 16) {
    const int64_t part = columns - j < 16 ? columns - j : 16;
    const auto kept = static_cast<__mmask16>(bits_at(marked, j, part));
    const __m512i some = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    _mm_mask_storeu_epi8(out + j, kept, _mm512_cvtepi32_epi8(_mm512_maskz_expand_epi32(kept, some)));
    codes += __builtin_popcount(kept);
  }
#else
#if defined(__AVX2__)
  for (; j + 8 <= columns; j += 8) {
    const uint8_t kept = marked[j / 8];
    const __m128i place = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(places.of[kept]));
    const __m128i some = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
    auto* to = reinterpret_cast<__m128i*>(out + j);
    _mm_storel_epi64(to, _mm_blendv_epi8(_mm_shuffle_epi8(some, place), _mm_loadl_epi64(to), place));
    codes += __builtin_popcount(kept);
  }
#endif
  for (; j < columns; j += 8)
    for (uint32_t kept = marked[j / 8]; kept != 0; kept &= kept - 1) out[j + __builtin_ctz(kept)] = *codes++;
#endif
}

int64_t mark_codes(uint8_t* marked, const uint8_t* codes, const uint8_t* zeros, int64_t columns) {
  int64_t count = 0;
  for (int64_t j = 0; j < columns; j += 8) {
    const int64_t part = columns - j < 8 ? columns - j : 8;
    uint32_t kept = 0;
    for (int64_t b = 0; b < part; ++b) kept |= static_cast<uint32_t>(codes[j + b] != zeros[j + b]) << b;
    marked[j / 8] = static_cast<uint8_t>(kept);
    count += __builtin_popcount(kept);
  }
  return count;
}

int64_t take_codes(uint8_t* out, const uint8_t* codes, const uint8_t* marked, int64_t columns) {
  uint8_t* const first = out;
  for (int64_t j = 0; j < columns; j += 8)
    for (uint32_t kept = marked[j / 8]; kept != 0; kept &= kept - 1) *out++ = codes[j + __builtin_ctz(kept)];
  return out - first;
}

void quantize_codes(uint8_t* codes, const float* x, float step, float zero, float max, int64_t count) {
  const float limit = 4194304.0f, magic = 12582912.0f;  // keep the sum within whole numbers: 2^22, 1.5 * 2^23
  for (int64_t i = 0; i < count; ++i) {
    float steps = x[i] / step;
    steps = steps > -limit ? steps : -limit;  // NaN too
    steps = steps < limit ? steps : limit;
    const float code = ((steps + magic) - magic) + zero;
    codes[i] = static_cast<uint8_t>(code > 0 ? (code < max ? code : max) : 0);
  }
}

void dequantize_codes(float* out, const uint8_t* codes, float step, float zero, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = (static_cast<float>(codes[i]) - zero) * step;
}

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
