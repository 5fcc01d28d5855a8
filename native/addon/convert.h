// From JavaScript values to native ones, and errors back.
#pragma once

#include <napi.h>

#include <cmath>
#include <string>
#include <type_traits>

#include "addon/addon.h"
#include "core/error.h"
#include "core/operations.h"
#include "core/tensor.h"

namespace sparsegpt::addon {

inline Napi::TypeError expected(const Napi::Value& value, const std::string& place, const char* what) {
  return Napi::TypeError::New(value.Env(), place + (place.empty() ? "" : ": ") + "expected " + what);
}

inline Tensor read_tensor(const Napi::Value& value, const std::string& place = "") {
  if (!value.IsExternal()) throw expected(value, place, "a tensor");
  const Tensor& tensor = *value.As<Napi::External<Tensor>>().Data();
  if (!tensor)
    throw to_js(value.Env(), Error("INTERNAL", place + (place.empty() ? "" : ": ") + "the tensor has been disposed"));
  return tensor;
}

inline DType read_dtype(const Napi::Value& value) {
  const std::string name = value.ToString();
  for (DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i32, DType::u8})
    if (name == dtype_name(dtype)) return dtype;
  throw Napi::TypeError::New(value.Env(), "unknown dtype " + name);
}

inline Activation read_activation(const Napi::Value& value, const std::string& place) {
  const std::string name = value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "silu") return Activation::silu;
  if (name == "relu2") return Activation::relu2;
  if (name == "clamped_swish") return Activation::clamped_swish;
  if (name == "clamped_linear") return Activation::clamped_linear;
  throw expected(value, place, "relu, gelu, gelu_tanh, silu, relu2, clamped_swish or clamped_linear");
}

// For every type of an operation's fields. undefined stands for "no tensor". `place` is named in the TypeError.
template <typename T>
T read(const Napi::Value& value, const std::string& place = "") {
  if constexpr (std::is_same_v<T, Tensor>) {
    return value.IsUndefined() ? Tensor{} : read_tensor(value, place);
  } else if constexpr (std::is_same_v<T, Activation>) {
    return read_activation(value, place);
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (!value.IsString()) throw expected(value, place, "a string");
    return value.As<Napi::String>();
  } else if constexpr (std::is_same_v<T, bool>) {
    if (!value.IsBoolean()) throw expected(value, place, "a boolean");
    return value.As<Napi::Boolean>().Value();
  } else {
    static_assert(std::is_arithmetic_v<T>);
    if (!value.IsNumber()) throw expected(value, place, "a number");
    const double number = value.As<Napi::Number>().DoubleValue();
    if (std::is_integral_v<T> && !(std::trunc(number) == number && std::fabs(number) <= 0x1p53))
      throw expected(value, place, "an integer");
    return static_cast<T>(number);
  }
}

}  // namespace sparsegpt::addon
