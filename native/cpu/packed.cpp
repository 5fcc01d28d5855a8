// Packed matrices: the values or codes that are not zero, and a bitmask of where they are.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "cpu/cpu_backend.h"
#include "cpu/rows.h"

namespace sparsegpt::cpu {

// Elements are moved as what they are stored in, of `size` bytes (2 or 4); a row's bits begin with a byte of their own.
// Returns how many elements are marked.
SPARSEGPT_KERNEL(mark_row, int64_t, uint8_t* bits, const void* x, size_t size, int64_t columns);
SPARSEGPT_KERNEL(pack_row, void, void* values, const void* x, const uint8_t* bits, size_t size, int64_t columns);
// Reads no value behind the row's last.
SPARSEGPT_KERNEL(unpack_row, void, void* out, const void* values, const uint8_t* bits, size_t size, int64_t columns);
SPARSEGPT_KERNEL(count_bits, int64_t, const uint8_t* bits, int64_t bytes);

// Codes of `bits` bits as a stream, the lowest bit first, which ends with a whole byte; neither touches bytes behind it.
SPARSEGPT_KERNEL(pack_codes, void, uint8_t* packed, const uint8_t* codes, int bits, int64_t count);
SPARSEGPT_KERNEL(unpack_codes, void, uint8_t* codes, const uint8_t* packed, int bits, int64_t count);
// The codes at the marked columns of a row; other columns of `out` stay as they are. `codes` can be read up to 16 bytes behind its last.
SPARSEGPT_KERNEL(expand_codes, void, uint8_t* out, const uint8_t* codes, const uint8_t* marked, int64_t columns);
// Marks the codes that differ from those of `zeros`.
SPARSEGPT_KERNEL(mark_codes, int64_t, uint8_t* marked, const uint8_t* codes, const uint8_t* zeros, int64_t columns);
// The marked codes of a row, one after another; returns how many.
SPARSEGPT_KERNEL(take_codes, int64_t, uint8_t* out, const uint8_t* codes, const uint8_t* marked, int64_t columns);
// The nearest codes from 0 to max on a grid step · (code - zero), and back.
SPARSEGPT_KERNEL(quantize_codes, void, uint8_t* codes, const float* x, float step, float zero, float max, int64_t count);
SPARSEGPT_KERNEL(dequantize_codes, void, float* out, const uint8_t* codes, float step, float zero, int64_t count);

namespace {

// Where the values of a row begin, or end behind the last one.
class Offsets {
 public:
  Offsets(const Tensor& offsets, const Tensor& values)
      : data_(offsets.data<uint8_t>()), rows_(offsets.rows), end_(values.columns) {}
  int64_t operator[](int64_t row) const {
    int64_t offset = end_;
    if (row < rows_) std::memcpy(&offset, data_ + row * 8, 8);
    return offset;
  }

 private:
  const uint8_t* data_;
  int64_t rows_, end_;
};

// The first of the rows that are wrong.
class BadRow {
 public:
  explicit BadRow(int64_t rows) : rows_(rows), row_(rows) {}
  void report(int64_t row) {
    for (int64_t known = row_; row < known && !row_.compare_exchange_weak(known, row);) {
    }
  }
  template <typename Operation>
  void check(const Operation& o) const {
    if (row_ < rows_) throw Error("INVALID_CHECKPOINT", Operation::message(o.subject, row_));
  }

 private:
  const int64_t rows_;
  std::atomic<int64_t> row_;
};

// The zero point of every group of a row.
struct ZeroPoints {
  ZeroPoints(const Tensor& zero_points, int bits)
      : data(zero_points ? zero_points.data<uint8_t>() : nullptr),
        groups(zero_points ? zero_points.columns : 1),
        middle(static_cast<uint8_t>(middle_code(bits))) {}
  uint8_t at(int64_t row, int64_t group) const { return data != nullptr ? data[row * groups + group] : middle; }
  // One for each column.
  void fill(uint8_t* out, int64_t row, int64_t columns) const {
    const int64_t size = columns / groups;
    for (int64_t g = 0; g < groups; ++g) std::memset(out + g * size, at(row, g), static_cast<size_t>(size));
  }
  bool are_codes(int64_t row, int bits) const {
    bool all = true;
    for (int64_t g = 0; g < groups; ++g) all = all && at(row, g) >> bits == 0;
    return all;
  }

  const uint8_t* data;
  int64_t groups;
  uint8_t middle;
};

// Whether no bit is set in bytes behind the first `used` bits.
bool ends_there(const uint8_t* bytes, int64_t used, int64_t size) {
  if (used % 8 != 0 && bytes[used / 8] >> (used % 8) != 0) return false;
  return std::all_of(bytes + (used + 7) / 8, bytes + size, [](uint8_t byte) { return byte == 0; });
}

uint8_t* bytes_of(std::vector<float>& buffer, int64_t count) {
  buffer.resize(static_cast<size_t>(count / 4 + 1));
  return reinterpret_cast<uint8_t*>(buffer.data());
}

}  // namespace

void CpuBackend::compute(const MarkValues& o) {
  const int64_t width = o.bitmask.columns;
  for_rows(pool_, o.x.rows, o.x.columns, [&](int64_t i, std::vector<float>&) {
    uint8_t* bits = o.bitmask.data<uint8_t>() + i * width;
    o.counts.data<int32_t>()[i] =
        static_cast<int32_t>(mark_row[level_](bits, row_of(o.x, i), dtype_size(o.x.dtype), o.x.columns));
  });
}

void CpuBackend::compute(const PackValues& o) {
  const size_t size = dtype_size(o.x.dtype);
  const Offsets offsets(o.offsets, o.values);
  for_rows(pool_, o.x.rows, o.x.columns, [&](int64_t i, std::vector<float>&) {
    std::byte* values = o.values.bytes() + offsets[i] * static_cast<int64_t>(size);
    const uint8_t* bits = o.bitmask.data<uint8_t>() + i * o.bitmask.columns;
    pack_row[level_](values, row_of(o.x, i), bits, size, o.x.columns);
  });
}

void CpuBackend::compute(const UnpackValues& o) {
  const size_t size = dtype_size(o.out.dtype);
  const int64_t columns = o.out.columns, width = o.bitmask.columns;
  const Offsets offsets(o.offsets, o.values);
  BadRow bad(o.out.rows);
  for_rows(pool_, o.out.rows, columns, [&](int64_t i, std::vector<float>&) {
    const uint8_t* bits = o.bitmask.data<uint8_t>() + i * width;
    const int64_t begin = offsets[i], end = offsets[i + 1];
    const bool starts = i == 0 ? begin == 0 : begin >= 0;
    const bool ends = columns % 8 == 0 || bits[width - 1] >> (columns % 8) == 0;
    if (starts && ends && begin <= end && end <= o.values.columns && count_bits[level_](bits, width) == end - begin) {
      const std::byte* values = o.values.bytes() + begin * static_cast<int64_t>(size);
      unpack_row[level_](row_of(o.out, i), values, bits, size, columns);
      return;
    }
    bad.report(i);
  });
  bad.check(o);
}

void CpuBackend::compute(const QuantizeCodes& o) {
  const int64_t columns = o.x.columns, groups = o.steps.columns, size = columns / groups;
  const float max = static_cast<float>((1 << o.bits) - 1);
  for_rows(pool_, o.x.rows, columns, [&](int64_t i, std::vector<float>& buffer) {
    buffer.resize(static_cast<size_t>(columns + groups));
    const float* x = as_floats(level_, o.x, i, 0, columns, buffer.data());
    const float* steps = as_floats(level_, o.steps, i, 0, groups, buffer.data() + columns);
    const float* zeros = o.zeros.data<float>() + i * groups;
    for (int64_t g = 0; g < groups; ++g) {
      quantize_codes[level_](o.codes.data<uint8_t>() + i * columns + g * size, x + g * size, steps[g], zeros[g], max, size);
      o.zero_points.data<uint8_t>()[i * groups + g] = static_cast<uint8_t>(std::min(std::max(zeros[g], 0.0f), max));
    }
  });
}

void CpuBackend::compute(const DequantizeCodes& o) {
  const int64_t columns = o.codes.columns, groups = o.scale.columns, size = columns / groups;
  const ZeroPoints zeros(o.zero_points, o.bits);
  for_rows(pool_, o.codes.rows, columns, [&](int64_t i, std::vector<float>& buffer) {
    buffer.resize(static_cast<size_t>(columns + groups));
    const float* scale = as_floats(level_, o.scale, i, 0, groups, buffer.data() + columns);
    const bool direct = o.out.dtype == DType::f32;
    float* out = direct ? reinterpret_cast<float*>(row_of(o.out, i)) : buffer.data();
    for (int64_t g = 0; g < groups; ++g) {
      const uint8_t* codes = o.codes.data<uint8_t>() + i * columns + g * size;
      dequantize_codes[level_](out + g * size, codes, scale[g], static_cast<float>(zeros.at(i, g)), size);
    }
    if (!direct) from_float[level_](row_of(o.out, i), o.out.dtype, out, columns);
  });
}

void CpuBackend::compute(const MarkCodes& o) {
  const int64_t columns = o.codes.columns;
  const ZeroPoints zeros(o.zero_points, o.bits);
  for_rows(pool_, o.codes.rows, columns, [&](int64_t i, std::vector<float>& buffer) {
    uint8_t* line = bytes_of(buffer, columns);
    zeros.fill(line, i, columns);
    const uint8_t* codes = o.codes.data<uint8_t>() + i * columns;
    uint8_t* marked = o.bitmask.data<uint8_t>() + i * o.bitmask.columns;
    o.counts.data<int32_t>()[i] = static_cast<int32_t>(mark_codes[level_](marked, codes, line, columns));
  });
}

void CpuBackend::compute(const PackCodes& o) {
  const int64_t columns = o.codes.columns;
  for_rows(pool_, o.codes.rows, columns, [&](int64_t i, std::vector<float>& buffer) {
    const uint8_t* codes = o.codes.data<uint8_t>() + i * columns;
    if (!o.bitmask) {
      uint8_t* packed = o.packed.data<uint8_t>() + i * o.packed.columns;
      const int64_t used = code_bytes(columns, o.bits);
      pack_codes[level_](packed, codes, o.bits, columns);
      std::memset(packed + used, 0, static_cast<size_t>(o.packed.columns - used));
      return;
    }
    uint8_t* kept = bytes_of(buffer, columns);
    const int64_t count = take_codes[level_](kept, codes, o.bitmask.data<uint8_t>() + i * o.bitmask.columns, columns);
    pack_codes[level_](o.packed.data<uint8_t>() + Offsets(o.offsets, o.packed)[i], kept, o.bits, count);
  });
}

void CpuBackend::compute(const UnpackCodes& o) {
  const int64_t columns = o.codes.columns, width = bitmask_columns(columns);
  const ZeroPoints zeros(o.zero_points, o.bits);
  BadRow bad(o.codes.rows);
  for_rows(pool_, o.codes.rows, columns, [&](int64_t i, std::vector<float>& buffer) {
    uint8_t* codes = o.codes.data<uint8_t>() + i * columns;
    const uint8_t* packed = o.packed.data<uint8_t>();
    if (!zeros.are_codes(i, o.bits)) return bad.report(i);
    if (!o.bitmask) {
      packed += i * o.packed.columns;
      if (!ends_there(packed, columns * o.bits, o.packed.columns)) return bad.report(i);
      unpack_codes[level_](codes, packed, o.bits, columns);
      return;
    }
    const Offsets offsets(o.offsets, o.packed);
    const uint8_t* marked = o.bitmask.data<uint8_t>() + i * width;
    const int64_t begin = offsets[i], end = offsets[i + 1], count = count_bits[level_](marked, width);
    const bool starts = i == 0 ? begin == 0 : begin >= 0;
    if (!starts || begin > end || end > o.packed.columns || end - begin != code_bytes(count, o.bits) ||
        !ends_there(marked, columns, width) || !ends_there(packed + begin, count * o.bits, end - begin))
      return bad.report(i);
    uint8_t* kept = bytes_of(buffer, columns + 16);
    unpack_codes[level_](kept, packed + begin, o.bits, count);
    zeros.fill(codes, i, columns);
    expand_codes[level_](codes, kept, marked, columns);
  });
  bad.check(o);
}

}  // namespace sparsegpt::cpu
