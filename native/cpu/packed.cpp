// Packed matrices: the values that are not zero, and a bitmask of where they are.
#include <algorithm>
#include <atomic>
#include <cstring>

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
  std::atomic<int64_t> bad{o.out.rows};  // the first
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
    for (int64_t known = bad; i < known && !bad.compare_exchange_weak(known, i);) {
    }
  });
  if (bad < o.out.rows) throw Error("INVALID_CHECKPOINT", UnpackValues::message(o.subject, bad));
}

}  // namespace sparsegpt::cpu
