// What backends check before they touch memory. A failure is a defect of the caller: INTERNAL.
#pragma once

#include <string>

#include "core/error.h"
#include "core/tensor.h"

namespace sparsegpt {

inline void require(bool condition, const std::string& what) {
  if (!condition) throw Error("INTERNAL", what);
}

inline void require_shape(const Tensor& tensor, int64_t rows, int64_t columns, const char* name) {
  require(tensor && tensor.rows == rows && tensor.columns == columns, std::string(name) + " is " + describe(tensor) +
                                                                          ", expected [" + std::to_string(rows) + ", " +
                                                                          std::to_string(columns) + "]");
}

inline void require_float(const Tensor& tensor, const char* name) {
  require(tensor && is_float(tensor.dtype), std::string(name) + " is " + describe(tensor) + ", expected a float type");
}

// Of one type with rows one after another, as solvers want it.
inline void require_plain(const Tensor& tensor, int64_t rows, int64_t columns, DType dtype, const char* name) {
  require_shape(tensor, rows, columns, name);
  require(tensor.dtype == dtype && tensor.contiguous(),
          std::string(name) + " must be contiguous " + dtype_name(dtype) + ", is " + describe(tensor));
}

// Rows must hold whole groups of m: INVALID_OPTION.
inline void require_groups(int64_t columns, int n, int m) {
  if (columns % m != 0)
    throw Error("INVALID_OPTION", "pattern " + std::to_string(n) + ":" + std::to_string(m) +
                                      " needs a number of columns divisible by " + std::to_string(m) + ", not " +
                                      std::to_string(columns));
}

inline size_t byte_size(const Tensor& tensor) { return static_cast<size_t>(tensor.size()) * dtype_size(tensor.dtype); }

}  // namespace sparsegpt
