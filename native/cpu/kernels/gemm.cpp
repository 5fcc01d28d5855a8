// Packing and the register tile of the GEMM, after BLIS. The unit of a panel is 32 bits: a float32 element, or two bfloat16
// elements that follow each other along the depth, whose product with another such pair is the sum of two products
// (VDPBF16PS). All but that product and the widening of packed elements is the same for both.
#include "cpu/kernels/elements.h"
#include "cpu/kernels/tile.h"

namespace sparsegpt::cpu::SPARSEGPT_ISA {

namespace {

// --- packing ------------------------------------------------------------------------------------------------------------
//
// A source says how to load units of its elements:
//   along(p, left)          the next `width` units along the depth, of which `left` elements exist
//   across(p, q, lanes)     one unit of `width` lanes, of which `lanes` exist: elements at p, and at q (null: none) for pairs
//   one(p, q)               one unit

struct Floats {
  static constexpr int64_t bytes = 4, elements = 1;
  static vf along(const char* p, int64_t left) { return FloatElements::load(p, left); }
  static vf across(const char* p, const char*, int64_t lanes) { return along(p, lanes); }
  static float one(const char* p, const char*) { return load_scalar(p, 0, DType::f32); }
};

struct Bfloats {
  static constexpr int64_t bytes = 2, elements = 1;
  static vf along(const char* p, int64_t left) { return BfloatElements::load(p, left); }
  static vf across(const char* p, const char*, int64_t lanes) { return along(p, lanes); }
  static float one(const char* p, const char*) { return load_scalar(p, 0, DType::bf16); }
};

struct Halves {
  static constexpr int64_t bytes = 2, elements = 1;
  static vf along(const char* p, int64_t left) {
    float values[width] = {};
    span_to_float(values, p, DType::f16, left < width ? left : width);
    return load(values);
  }
  static vf across(const char* p, const char*, int64_t lanes) { return along(p, lanes); }
  static float one(const char* p, const char*) { return load_scalar(p, 0, DType::f16); }
};

#if defined(__AVX512BF16__)
struct Pairs {
  static constexpr int64_t bytes = 2, elements = 2;
  static vf along(const char* p, int64_t left) { return PairElements::load(p, left); }
  static vf across(const char* p, const char* q, int64_t lanes) {
    vu bits = widen(load_halves(p, lanes));
    if (q != nullptr) bits |= widen(load_halves(q, lanes)) << 16;
    return reinterpret_cast<const vf&>(bits);
  }
  static float one(const char* p, const char* q) {
    float unit = 0;
    memcpy(&unit, p, 2);
    if (q != nullptr) memcpy(reinterpret_cast<char*>(&unit) + 2, q, 2);
    return unit;
  }
};
#endif

// The elements of two vectors in turn. Compilers see one shuffle in each of these lists.
void interleave(vf& low, vf& high) {
  const vf a = low, b = high;
#if defined(__AVX512F__)
  low = vf{a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3], a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7]};
  high = vf{a[8], b[8], a[9], b[9], a[10], b[10], a[11], b[11], a[12], b[12], a[13], b[13], a[14], b[14], a[15], b[15]};
#elif defined(__AVX2__)
  low = vf{a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3]};
  high = vf{a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7]};
#else
  low = vf{a[0], b[0], a[1], b[1]};
  high = vf{a[2], b[2], a[3], b[3]};
#endif
}

// Each round interleaves the rows of the upper half with those of the lower: after log2(width) rounds, the transpose.
inline __attribute__((always_inline)) void transpose(vf (&rows)[width]) {
#pragma GCC unroll 4
  for (int64_t step = 1; step < width; step *= 2) {
    vf next[width];
#pragma GCC unroll 8
    for (int64_t i = 0; i < width / 2; ++i) {
      next[2 * i] = rows[i];
      next[2 * i + 1] = rows[i + width / 2];
      interleave(next[2 * i], next[2 * i + 1]);
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < width; ++i) rows[i] = next[i];
  }
}

// Stores write whole vectors. Where a panel is narrower, what is written beyond it belongs to the unit that is written next,
// so the last unit of a panel is stored exactly.
template <typename Source>
void pack_panels(float* packed, int64_t panel, const void* data, int64_t lane_stride, int64_t depth_stride, int64_t lanes,
                 int64_t depth) {
  const int64_t units = (depth + Source::elements - 1) / Source::elements;
  const auto at = [&](int64_t lane, int64_t p) {
    return static_cast<const char*>(data) + (lane * lane_stride + p * depth_stride) * Source::bytes;
  };
  const auto second = [&](int64_t lane, int64_t p) {
    return Source::elements == 2 && p + 1 < depth ? at(lane, p + 1) : nullptr;
  };
  if (depth_stride == 1) {
    for (int64_t first = 0; first < lanes; first += panel, packed += panel * units) {
      for (int64_t l = 0; l < panel && first + l < lanes; l += width) {
        for (int64_t u = 0; u < units; u += width) {
          // Lanes that do not exist repeat the last one: they reach rows and columns of the tile that are not stored.
          const int64_t last = lanes - 1 - first - l, p = u * Source::elements;
          vf rows[width];
#pragma GCC unroll 16
          for (int64_t i = 0; i < width; ++i) rows[i] = Source::along(at(first + l + (i < last ? i : last), p), depth - p);
          transpose(rows);
          float* out = packed + u * panel + l;
          const int64_t count = units - u, room = panel - l;
#pragma GCC unroll 16
          for (int64_t i = 0; i < width; ++i) {
            if (i + 1 < count || (i < count && room >= width)) {
              store(out + i * panel, rows[i]);
            } else if (i < count) {
              store_part(out + i * panel, rows[i], room);
            }
          }
        }
      }
    }
  } else if (lane_stride == 1) {
    // By some steps of the depth, so that memory is read along its rows.
    constexpr int64_t steps = 8;
    for (int64_t u0 = 0; u0 < units; u0 += steps) {
      for (int64_t first = 0; first < lanes; first += panel) {
        float* out = packed + first * units + u0 * panel;
        for (int64_t u = u0; u < units && u < u0 + steps; ++u, out += panel) {
          const int64_t p = u * Source::elements;
          for (int64_t l = 0; l < panel && first + l < lanes; l += width) {
            for (int64_t e = 0; e < Source::elements; ++e)
              __builtin_prefetch(at(first + l, p + steps * Source::elements + e));
            const vf unit = Source::across(at(first + l, p), second(first + l, p), lanes - first - l);
            if (u + 1 < units || panel - l >= width) {
              store(out + l, unit);
            } else {
              store_part(out + l, unit, panel - l);
            }
          }
        }
      }
    }
  } else {
    for (int64_t first = 0; first < lanes; first += panel) {
      for (int64_t u = 0; u < units; ++u, packed += panel) {
        const int64_t p = u * Source::elements;
        for (int64_t l = 0; l < panel; ++l)
          packed[l] = first + l < lanes ? Source::one(at(first + l, p), second(first + l, p)) : 0;
      }
    }
  }
}

// --- the register tile --------------------------------------------------------------------------------------------------

template <typename Multiply>
inline __attribute__((always_inline)) void multiply_panels(int64_t units, const float* a, const float* b, const GemmTile& t,
                                                           Multiply multiply) {
  prefetch_tile(t);
  vf sums[mr][2] = {};
  for (int64_t p = 0; p < units; ++p) {
    const vf b0 = load(b), b1 = load(b + width);
#pragma GCC unroll 16
    for (int64_t i = 0; i < mr; ++i) {
      const vf ai = broadcast(a[i]);
      sums[i][0] = multiply(sums[i][0], ai, b0);
      sums[i][1] = multiply(sums[i][1], ai, b1);
    }
    a += mr;
    b += nr;
  }
  store_tile(sums, t);
}

}  // namespace

RegisterTile register_tile() { return {mr, nr}; }

void pack(float* packed, int64_t panel, const void* data, DType dtype, int64_t lane_stride, int64_t depth_stride,
          int64_t lanes, int64_t depth) {
  switch (dtype) {
    case DType::bf16: return pack_panels<Bfloats>(packed, panel, data, lane_stride, depth_stride, lanes, depth);
    case DType::f16: return pack_panels<Halves>(packed, panel, data, lane_stride, depth_stride, lanes, depth);
    default: return pack_panels<Floats>(packed, panel, data, lane_stride, depth_stride, lanes, depth);
  }
}

void micro(int64_t units, const float* a, const float* b, const GemmTile& tile) {
  multiply_panels(units, a, b, tile, [](vf sum, vf x, vf y) { return sum + x * y; });
}

#if defined(__AVX512BF16__)
void pack_pairs(float* packed, int64_t panel, const void* data, int64_t lane_stride, int64_t depth_stride, int64_t lanes,
                int64_t depth) {
  pack_panels<Pairs>(packed, panel, data, lane_stride, depth_stride, lanes, depth);
}

void micro_pairs(int64_t units, const float* a, const float* b, const GemmTile& tile) {
  multiply_panels(units, a, b, tile, add_pair_products);
}
#endif

}  // namespace sparsegpt::cpu::SPARSEGPT_ISA
