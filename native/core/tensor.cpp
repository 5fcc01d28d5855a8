#include "core/tensor.h"

#include "core/error.h"

namespace sparsegpt {

namespace {

void require_type(const Tensor& tensor, bool matches) {
  if (!matches) throw Error("INTERNAL", "unexpected element type of " + describe(tensor));
}

}  // namespace

template <>
float* Tensor::data<float>() const {
  require_type(*this, dtype == DType::f32);
  return reinterpret_cast<float*>(bytes());
}

template <>
double* Tensor::data<double>() const {
  require_type(*this, dtype == DType::f64);
  return reinterpret_cast<double*>(bytes());
}

template <>
int32_t* Tensor::data<int32_t>() const {
  require_type(*this, dtype == DType::i32);
  return reinterpret_cast<int32_t*>(bytes());
}

template <>
uint8_t* Tensor::data<uint8_t>() const {
  require_type(*this, dtype == DType::u8);
  return reinterpret_cast<uint8_t*>(bytes());
}

Tensor Tensor::column_range(int64_t begin, int64_t count) const {
  if (begin < 0 || count < 0 || begin + count > columns) throw Error("INTERNAL", "column range outside " + describe(*this));
  Tensor view = *this;
  view.columns = count;
  view.offset += begin * static_cast<int64_t>(dtype_size(dtype));
  return view;
}

Tensor Tensor::row_range(int64_t begin, int64_t count) const {
  if (begin < 0 || count < 0 || begin + count > rows) throw Error("INTERNAL", "row range outside " + describe(*this));
  Tensor view = *this;
  view.rows = count;
  view.offset += begin * stride * static_cast<int64_t>(dtype_size(dtype));
  return view;
}

Tensor Tensor::moved(int64_t elements) const {
  const auto element = static_cast<int64_t>(dtype_size(dtype));
  Tensor view = *this;
  view.offset += elements * element;
  const int64_t end = view.offset + ((rows - 1) * stride + columns) * element;
  if (view.offset < 0 || end > static_cast<int64_t>(storage->size()))
    throw Error("INTERNAL", describe(*this) + " cannot be moved by " + std::to_string(elements) + " elements");
  return view;
}

Tensor Tensor::reshaped(int64_t new_rows, int64_t new_columns) const {
  if (!contiguous() || new_rows < 0 || new_columns < 0 || new_rows * new_columns != size())
    throw Error("INTERNAL", describe(*this) + " does not have the elements of [" + std::to_string(new_rows) + ", " +
                                std::to_string(new_columns) + "] one after another");
  Tensor view = *this;
  view.rows = new_rows;
  view.columns = view.stride = new_columns;
  return view;
}

std::string describe(const Tensor& tensor) {
  if (!tensor) return "no tensor";
  return std::string(dtype_name(tensor.dtype)) + " [" + std::to_string(tensor.rows) + ", " + std::to_string(tensor.columns) +
         "]";
}

}  // namespace sparsegpt
