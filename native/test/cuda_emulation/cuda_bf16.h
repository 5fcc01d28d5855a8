#pragma once

#include "half.h"

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 h) { return emulation::from_bf16(h.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {emulation::to_bf16(x)}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }
