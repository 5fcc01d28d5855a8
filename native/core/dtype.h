// Element types of tensors. Checkpoints hold f32, bf16 and f16; i32 holds token ids, u8 masks, f64 statistics.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsegpt {

enum class DType : uint8_t { f32, bf16, f16, f64, i32, u8 };

constexpr size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::f64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    case DType::bf16:
    case DType::f16: return 2;
    case DType::u8: return 1;
  }
  return 0;
}

constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f64: return "float64";
    case DType::f32: return "float32";
    case DType::i32: return "int32";
    case DType::bf16: return "bfloat16";
    case DType::f16: return "float16";
    case DType::u8: return "uint8";
  }
  return "?";
}

constexpr bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16; }

}  // namespace sparsegpt
