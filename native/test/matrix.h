// Matrices of any element type with gaps between their rows, for the tests of products and attention.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/gemm.h"
#include "cpu/spans.h"
#include "test/check.h"

namespace sparsegpt::test {

// The nearest value of a float type.
inline std::vector<char> encode(const std::vector<float>& values, DType dtype) {
  std::vector<char> bytes(values.size() * dtype_size(dtype));
  if (values.empty()) return bytes;  // which has no address
  cpu::from_float[cpu::Level::baseline](bytes.data(), dtype, values.data(), static_cast<int64_t>(values.size()));
  return bytes;
}
inline std::vector<float> decode(const std::vector<char>& bytes, DType dtype) {
  std::vector<float> values(bytes.size() / dtype_size(dtype));
  if (bytes.empty()) return values;
  cpu::to_float[cpu::Level::baseline](values.data(), bytes.data(), dtype, static_cast<int64_t>(values.size()));
  return values;
}

// [rows, columns] with strides of both dimensions; what lies between is NaN, which spoils any sum that reads it.
class Matrix {
 public:
  enum class Layout { rows, transposed, scattered };

  Matrix(Random& random, DType dtype, int64_t rows, int64_t columns, Layout layout, int64_t gap) : dtype_(dtype) {
    const int64_t step = layout == Layout::scattered ? 3 : 1;
    if (layout == Layout::transposed) {
      row_stride_ = 1;
      column_stride_ = rows + gap;
    } else {
      row_stride_ = columns * step + gap;
      column_stride_ = step;
    }
    values_.assign(static_cast<size_t>(rows * row_stride_ + columns * column_stride_ + 1), NAN);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) values_[index(i, j)] = static_cast<float>(random.uniform(-1, 1));
    bytes_ = encode(values_, dtype);
    values_ = decode(bytes_, dtype);
  }

  // The type must hold the value.
  void set(int64_t i, int64_t j, float value) { write(index(i, j), value, encode({value}, dtype_)); }
  void clear(int64_t i, int64_t j) { write(index(i, j), 0, std::vector<char>(dtype_size(dtype_))); }

  double operator()(int64_t i, int64_t j) const { return values_[index(i, j)]; }
  cpu::Operand operand() const { return {bytes_.data(), dtype_, row_stride_, column_stride_}; }

 private:
  void write(size_t at, float value, const std::vector<char>& encoded) {
    values_[at] = value;
    std::copy(encoded.begin(), encoded.end(), bytes_.begin() + static_cast<std::ptrdiff_t>(at * encoded.size()));
  }
  size_t index(int64_t i, int64_t j) const { return static_cast<size_t>(i * row_stride_ + j * column_stride_); }

  DType dtype_;
  int64_t row_stride_, column_stride_;
  std::vector<float> values_;
  std::vector<char> bytes_;
};

}  // namespace sparsegpt::test
