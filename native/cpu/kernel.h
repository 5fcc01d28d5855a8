// Kernels: functions that are compiled once for every instruction-set level (see CMakeLists.txt), on the raw memory of one
// thread. The level amx has the kernels of avx512bf16, but for those of its tile registers. A kernel is declared where it is called, by its name and type, and defined in a file of cpu/kernels:
//
//   SPARSEGPT_KERNEL(softcap, void, float* x, float cap, int64_t count);   // in namespace sparsegpt::cpu
//   softcap[level](x, 30, count);
//
// A definition that is missing or takes other parameters shows when the program is linked.
#pragma once

#include <cstdint>

namespace sparsegpt::cpu {

// Narrowest first. The names are those of the kernels' namespaces.
#if defined(SPARSEGPT_X86_64)
enum class Level { baseline, avx2, avx512, avx512bf16, amx };
inline constexpr const char* level_names[] = {"baseline", "avx2", "avx512", "avx512bf16", "amx"};
#else
enum class Level { baseline };
inline constexpr const char* level_names[] = {"baseline"};
#endif
inline constexpr int level_count = static_cast<int>(sizeof level_names / sizeof *level_names);

constexpr const char* level_name(Level level) { return level_names[static_cast<int>(level)]; }

template <typename Function>
struct Kernel {
  Function* of_level[level_count];
  constexpr Function* operator[](Level level) const { return of_level[static_cast<int>(level)]; }
};

#define SPARSEGPT_DECLARE(level, name, result, ...) \
  namespace level {                                 \
  result name(__VA_ARGS__);                         \
  }

#if defined(SPARSEGPT_X86_64)
#define SPARSEGPT_KERNEL(name, result, ...)                                        \
  SPARSEGPT_DECLARE(baseline, name, result, __VA_ARGS__)                           \
  SPARSEGPT_DECLARE(avx2, name, result, __VA_ARGS__)                               \
  SPARSEGPT_DECLARE(avx512, name, result, __VA_ARGS__)                             \
  SPARSEGPT_DECLARE(avx512bf16, name, result, __VA_ARGS__)                         \
  inline constexpr ::sparsegpt::cpu::Kernel<result(__VA_ARGS__)> name {            \
    {                                                                              \
      baseline::name, avx2::name, avx512::name, avx512bf16::name, avx512bf16::name \
    }                                                                              \
  }
// For the dot product of bfloat16 pairs: null on the other levels.
#define SPARSEGPT_PAIRS_KERNEL(name, result, ...)                       \
  SPARSEGPT_DECLARE(avx512bf16, name, result, __VA_ARGS__)              \
  inline constexpr ::sparsegpt::cpu::Kernel<result(__VA_ARGS__)> name { \
    {                                                                   \
      nullptr, nullptr, nullptr, avx512bf16::name, avx512bf16::name     \
    }                                                                   \
  }
#else
#define SPARSEGPT_KERNEL(name, result, ...)                             \
  SPARSEGPT_DECLARE(baseline, name, result, __VA_ARGS__)                \
  inline constexpr ::sparsegpt::cpu::Kernel<result(__VA_ARGS__)> name { \
    {                                                                   \
      baseline::name                                                    \
    }                                                                   \
  }
#define SPARSEGPT_PAIRS_KERNEL(name, result, ...)                       \
  inline constexpr ::sparsegpt::cpu::Kernel<result(__VA_ARGS__)> name { \
    {                                                                   \
      nullptr                                                           \
    }                                                                   \
  }
#endif

// For tile registers: null on the other levels, and where the compiler does not know them.
#if defined(SPARSEGPT_AMX)
#define SPARSEGPT_TILES_KERNEL(name, result, ...)                       \
  SPARSEGPT_DECLARE(amx, name, result, __VA_ARGS__)                     \
  inline constexpr ::sparsegpt::cpu::Kernel<result(__VA_ARGS__)> name { \
    {                                                                   \
      nullptr, nullptr, nullptr, nullptr, amx::name                     \
    }                                                                   \
  }
// For all levels, with a way of its own for tile registers.
#define SPARSEGPT_TILED_KERNEL(name, result, ...)                           \
  SPARSEGPT_DECLARE(baseline, name, result, __VA_ARGS__)                    \
  SPARSEGPT_DECLARE(avx2, name, result, __VA_ARGS__)                        \
  SPARSEGPT_DECLARE(avx512, name, result, __VA_ARGS__)                      \
  SPARSEGPT_DECLARE(avx512bf16, name, result, __VA_ARGS__)                  \
  SPARSEGPT_DECLARE(amx, name, result, __VA_ARGS__)                         \
  inline constexpr ::sparsegpt::cpu::Kernel<result(__VA_ARGS__)> name {     \
    {                                                                       \
      baseline::name, avx2::name, avx512::name, avx512bf16::name, amx::name \
    }                                                                       \
  }
#else
#define SPARSEGPT_TILED_KERNEL SPARSEGPT_KERNEL
#define SPARSEGPT_TILES_KERNEL(name, result, ...) \
  inline constexpr ::sparsegpt::cpu::Kernel<result(__VA_ARGS__)> name {}
#endif

}  // namespace sparsegpt::cpu
