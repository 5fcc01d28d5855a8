#pragma once

#include "half.h"

struct __half {
  uint16_t bits;
};
inline float __half2float(__half h) { return emulation::from_f16(h.bits); }
inline __half __float2half_rn(float x) { return {emulation::to_f16(x)}; }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }
