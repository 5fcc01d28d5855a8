// Tensors as JavaScript holds them.
#pragma once

#include <napi.h>

#include <utility>

#include "addon/convert.h"

namespace sparsegpt::addon {

inline Napi::Value wrap(Napi::Env env, Tensor tensor) {
  return Napi::External<Tensor>::New(env, new Tensor(std::move(tensor)), [](Napi::Env, Tensor* dead) { delete dead; });
}

// Of (..., dtype, rows, columns, ...), without storage.
inline Tensor read_shape(const Info& info, size_t dtype_index) {
  Tensor tensor;
  tensor.dtype = read_dtype(info[dtype_index]);
  tensor.rows = read<int64_t>(info[dtype_index + 1]);
  tensor.columns = tensor.stride = read<int64_t>(info[dtype_index + 2]);
  return tensor;
}

}  // namespace sparsegpt::addon
