#include "cpu/strips.h"

#include <algorithm>
#include <cstring>

#include "cpu/cpu_backend.h"
#include "cpu/gemm.h"
#include "cpu/rows.h"
#include "cpu/scratch_model.h"

namespace sparsegpt::cpu {

namespace {

// Hands every piece of the strip that begins with row `first` of x to `bytes(data, size)`, in order. Rows and columns beyond the matrix
// hold nothing.
template <typename T, typename Bytes>
void for_pieces(const Tensor& x, const Tensor& zeros, const Tensor& scales, const StripForm& form, int64_t first,
                const Bytes& bytes) {
  const int64_t rows = std::min(strip_rows, x.rows - first), wide = tile_columns(form), groups = form.groups();
  const int64_t bundles = bundle_count(form), per_group = groups == 0 ? bundles : bundles / groups;
  T nothing[strip_rows] = {};  // of each row: what stands for zero
  for (int64_t bundle = 0; bundle < bundles; ++bundle) {
    if (groups > 0 && bundle % per_group == 0) {
      float values[strip_rows] = {};
      uint16_t halves[strip_rows];
      uint8_t codes[strip_rows] = {};
      for (int64_t r = 0; r < rows; ++r) {
        codes[r] = zeros.data<uint8_t>()[(first + r) * groups + bundle / per_group];
        nothing[r] = codes[r];
        if (scales) to_float[Level::baseline](&values[r], element(scales, first + r, bundle / per_group), scales.dtype, 1);
      }
      from_float[Level::baseline](halves, DType::bf16, values, strip_rows);
      if (form.half_scales) {
        bytes(halves, sizeof halves);
      } else {
        bytes(values, sizeof values);
      }
      bytes(codes, sizeof codes);
    }
    T elements[bundle_tiles][64];
    int64_t counts[bundle_tiles];
    for (int64_t t = 0; t < bundle_tiles; ++t) {
      const int64_t column = (bundle * bundle_tiles + t) * wide;
      uint64_t mask = 0;
      counts[t] = 0;
      for (int64_t r = 0; r < strip_rows; ++r) {
        const T* row = r < rows ? reinterpret_cast<const T*>(row_of(x, first + r)) : nullptr;
        for (int64_t c = 0; c < wide; ++c) {
          const T element = row != nullptr && column + c < form.columns ? row[column + c] : nothing[r];
          const bool kept = element != nothing[r];
          mask |= static_cast<uint64_t>(kept) << (r * wide + c);
          elements[t][counts[t]] = element;
          counts[t] += kept || !form.masked;
        }
      }
      if (form.masked) bytes(&mask, form.bits == 16 ? 4 : 8);
    }
    for (int64_t t = 0; t < bundle_tiles; ++t) {
      if (form.bits == 4) {
        if (counts[t] % 2 != 0) elements[t][counts[t]] = 0;
        for (int64_t i = 0; i < counts[t]; i += 2)
          elements[t][i / 2] = static_cast<T>(elements[t][i] | elements[t][i + 1] << 4);
      }
      bytes(elements[t], (counts[t] * form.bits + 7) / 8);
    }
  }
}

template <typename Bytes>
void for_bytes(const Tensor& x, const Tensor& zeros, const Tensor& scales, const StripForm& form, int64_t strip,
               const Bytes& bytes) {
  if (form.bits == 16) {
    for_pieces<uint16_t>(x, zeros, scales, form, strip * strip_rows, bytes);
  } else {
    for_pieces<uint8_t>(x, zeros, scales, form, strip * strip_rows, bytes);
  }
}

int64_t offset_of(const Tensor& offsets, int64_t strip) {
  int64_t offset;
  std::memcpy(&offset, offsets.data<uint8_t>() + strip * 8, 8);
  return offset;
}

}  // namespace

void CpuBackend::compute(const MeasureStrips& o) {
  pool_.parallel_for(strip_count(o.x.rows), [&](int64_t strip, int) {
    int64_t total = 0;
    for_bytes(o.x, o.zeros, {}, o.form(), strip, [&](const void*, int64_t size) { total += size; });
    o.sizes.data<int32_t>()[strip] = static_cast<int32_t>(total);
  });
}

void CpuBackend::compute(const PackStrips& o) {
  pool_.parallel_for(strip_count(o.x.rows), [&](int64_t strip, int) {
    uint8_t* to = o.stream.data<uint8_t>() + offset_of(o.offsets, strip);
    for_bytes(o.x, o.zeros, o.scales, o.form(), strip, [&](const void* data, int64_t size) {
      std::memcpy(to, data, static_cast<size_t>(size));
      to += size;
    });
  });
}

namespace {

// The rows of x as the kernels want them.
struct StripRows {
  int64_t floats, codes, bundles;
};
StripRows rows_of(const MultiplyStrips& o) {
  const StripForm form = o.form();
  const int64_t bundles = bundle_count(form), padded = bundles * bundle_columns(form);
  return {o.x.rows * padded, form.bits == 16 ? 0 : o.x.rows * padded, form.bits == 16 ? 0 : o.x.rows * bundles};
}
int64_t bias_floats(const MultiplyStrips& o) { return o.bias ? o.bias.columns : 0; }

}  // namespace

void CpuBackend::compute(const MultiplyStrips& o) {
  const StripForm form = o.form();
  const StripRows sizes = rows_of(o);
  const int64_t rows = o.x.rows;
  if (rows == 0) return;
  const auto bias = pool_.scratch<float>(bias_floats(o));
  if (o.bias) to_float[level_](bias.data(), o.bias.bytes(), o.bias.dtype, o.bias.columns);
  const auto x = pool_.scratch<float>(sizes.floats);
  const auto codes = pool_.scratch<int8_t>(sizes.codes);
  const auto scales = pool_.scratch<float>(2 * sizes.bundles);
  const int64_t padded = sizes.floats / rows;
  const bool pairs = form.bits == 16 && micro_pairs[level_] != nullptr && o.x.dtype == DType::bf16;
  for (int64_t t = 0; t < rows; ++t) {
    float* row = x.data() + t * padded;
    if (pairs) {
      auto* halves = reinterpret_cast<uint16_t*>(x.data()) + t * padded;
      std::memcpy(halves, row_of(o.x, t), static_cast<size_t>(form.columns) * 2);
      std::fill(halves + form.columns, halves + padded, uint16_t{0});
      continue;
    }
    to_float[level_](row, row_of(o.x, t), o.x.dtype, form.columns);
    std::fill(row + form.columns, row + padded, 0.0f);
    if (form.bits == 16) continue;
    const int64_t bundles = bundle_count(form);
    encode_row[level_](codes.data() + t * padded, scales.data() + t * bundles, scales.data() + sizes.bundles + t * bundles,
                       row, padded);
  }

  StripProduct product{};
  product.rows = rows;
  product.bundles = bundle_count(form);
  product.per_group = form.groups() == 0 ? product.bundles : product.bundles / form.groups();
  product.bits = form.bits;
  product.masked = form.masked;
  product.half_scales = form.half_scales;
  product.x = x.data();
  product.pairs = pairs ? reinterpret_cast<const uint32_t*>(x.data()) : nullptr;
  product.codes = codes.data();
  product.scales = scales.data();
  product.sums = scales.data() + sizes.bundles;
  product.dtype = o.out.dtype;
  product.out_stride = o.out.stride;
  // Parts of at least 64 KB.
  const int64_t strips = strip_count(o.out.columns);
  const int64_t parts =
      std::clamp(o.stream.columns / 65536, int64_t{1}, std::min<int64_t>(strips, int64_t{4} * pool_.threads()));
  pool_.parallel_for(parts, [&](int64_t part, int) {
    const int64_t first = part * strips / parts, end = (part + 1) * strips / parts;
    StripProduct mine = product;
    mine.strips = end - first;
    mine.last_rows = std::min(strip_rows, o.out.columns - (end - 1) * strip_rows);
    mine.stream = o.stream.data<uint8_t>() + offset_of(o.offsets, first);
    mine.bias = o.bias ? bias.data() + first * strip_rows : nullptr;
    mine.out = element(o.out, 0, first * strip_rows);
    multiply_strips[level_](mine);
  });
}

size_t CpuScratch::bytes(const MultiplyStrips& o) const {
  const StripRows sizes = rows_of(o);
  return Scratch<float>::bytes(bias_floats(o)) + Scratch<float>::bytes(sizes.floats) + Scratch<int8_t>::bytes(sizes.codes) +
         Scratch<float>::bytes(2 * sizes.bundles);
}

}  // namespace sparsegpt::cpu
