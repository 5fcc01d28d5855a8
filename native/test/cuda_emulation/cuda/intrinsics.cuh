// The emulation's version of native/cuda/intrinsics.cuh, which says what these do.
#pragma once

#include <cuda_runtime.h>

#include <ctime>
#include <tuple>

#include "half.h"

namespace sparsegpt::cuda {

template <typename T>
struct Same {
  using type = T;
};

template <typename... Parameters>
void launch(const char*, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
            typename Same<Parameters>::type... arguments) {
  if (grid.x == 0 || grid.y == 0) return;
  emulation::enqueue(stream, [=, arguments = std::tuple<Parameters...>(arguments...)] {
    struct Call {
      void (*kernel)(Parameters...);
      const std::tuple<Parameters...>& arguments;
    } const call{kernel, arguments};
    emulation::run(
        grid, block, shared,
        [](const void* context) {
          const auto& c = *static_cast<const Call*>(context);
          std::apply(c.kernel, c.arguments);
        },
        &call);
  });
}

inline unsigned char* dynamic_shared() { return emulation::dynamic_shared(); }

inline uint64_t nanoseconds() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

template <bool bf16>
void multiply_tile(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  emulation::share_with_warp(mine, sizeof mine);
  const auto half = [](uint32_t pair, int place) {
    const auto bits = static_cast<uint16_t>(pair >> (16 * place));
    return bf16 ? emulation::from_bf16(bits) : emulation::from_f16(bits);
  };
  const auto registers = [](int group, int thread) {
    return static_cast<const uint32_t*>(emulation::of_lane(static_cast<unsigned>(group * 4 + thread)));
  };
  const int g = static_cast<int>(emulation::lane()) / 4, t = static_cast<int>(emulation::lane()) % 4;
  for (int e = 0; e < 4; ++e) {
    const int row = g + (e >= 2 ? 8 : 0), column = 2 * t + e % 2;
    for (int k = 0; k < 16; ++k) {
      const int thread = k % 8 / 2;
      const float left = half(registers(row % 8, thread)[row / 8 + k / 8 * 2], k % 2);
      const float right = half(registers(column, thread)[4 + k / 8], k % 2);
      d[e] += left * right;
    }
  }
}

inline void load_transposed(uint32_t& r0, uint32_t& r1, const void* row) {
  emulation::share_with_warp(&row, sizeof row);
  const unsigned g = emulation::lane() / 4, t = emulation::lane() % 4;
  const auto element = [&](unsigned tile, unsigned r) {
    return uint32_t{(*static_cast<const uint16_t* const*>(emulation::of_lane(tile * 8 + r)))[g]};
  };
  r0 = element(0, 2 * t) | element(0, 2 * t + 1) << 16;
  r1 = element(1, 2 * t) | element(1, 2 * t + 1) << 16;
}

}  // namespace sparsegpt::cuda
