// From JavaScript values to the types of the Backend interface, and errors back.
#pragma once

#include <napi.h>

#include <string>
#include <type_traits>

#include "core/backend.h"
#include "core/error.h"

namespace sparsegpt::addon {

// A JavaScript Error with the code of `error`; src/native/device.ts turns it into a SparseGptError.
inline Napi::Error to_js(Napi::Env env, const Error& error) {
  Napi::Error result = Napi::Error::New(env, error.what());
  result.Set("code", Napi::String::New(env, error.code()));
  return result;
}

inline Tensor read_tensor(const Napi::Value& value) {
  if (!value.IsExternal()) throw Napi::TypeError::New(value.Env(), "expected a tensor");
  const Tensor& tensor = *value.As<Napi::External<Tensor>>().Data();
  if (!tensor) throw to_js(value.Env(), Error("INTERNAL", "the tensor has been disposed"));
  return tensor;
}

inline DType read_dtype(const Napi::Value& value) {
  const std::string name = value.ToString();
  for (DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i32, DType::u8})
    if (name == dtype_name(dtype)) return dtype;
  throw Napi::TypeError::New(value.Env(), "unknown dtype " + name);
}

inline Activation read_activation(const Napi::Value& value) {
  const std::string name = value.ToString();
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "silu") return Activation::silu;
  throw Napi::TypeError::New(value.Env(), "unknown activation " + name);
}

// One overload per parameter type of a Backend operation. undefined stands for "no tensor".
template <typename T>
T read(const Napi::Value& value) {
  if constexpr (std::is_same_v<T, Tensor>) {
    return value.IsUndefined() ? Tensor{} : read_tensor(value);
  } else if constexpr (std::is_same_v<T, Activation>) {
    return read_activation(value);
  } else if constexpr (std::is_same_v<T, AttentionShape>) {
    const auto object = value.As<Napi::Object>();
    return {read<int64_t>(object.Get("sequence")), read<int64_t>(object.Get("heads")), read<int64_t>(object.Get("kvHeads")),
            read<int64_t>(object.Get("headDim")),  read<float>(object.Get("scale")),   read<int64_t>(object.Get("window")),
            read<float>(object.Get("softcap")),    read<Tensor>(object.Get("slopes"))};
  } else if constexpr (std::is_same_v<T, Selection>) {
    const auto object = value.As<Napi::Object>();
    return {read<double>(object.Get("sparsity")), read<int>(object.Get("n")), read<int>(object.Get("m")),
            read<Tensor>(object.Get("mask"))};
  } else if constexpr (std::is_same_v<T, bool>) {
    if (!value.IsBoolean()) throw Napi::TypeError::New(value.Env(), "expected a boolean");
    return value.As<Napi::Boolean>().Value();
  } else {
    static_assert(std::is_arithmetic_v<T>);
    if (!value.IsNumber()) throw Napi::TypeError::New(value.Env(), "expected a number");
    return static_cast<T>(value.As<Napi::Number>().DoubleValue());
  }
}

}  // namespace sparsegpt::addon
