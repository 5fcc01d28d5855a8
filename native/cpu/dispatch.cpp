#include "cpu/dispatch.h"

#include <cstdlib>
#include <string>

#if defined(SPARSEGPT_X86_64)
#include <cpuid.h>
#if defined(SPARSEGPT_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include "core/error.h"

namespace sparsegpt::cpu {

#if defined(SPARSEGPT_X86_64)
namespace {

// Not every compiler knows the name. The operating system saves the registers as for the rest of AVX-512.
bool has_avx512bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || eax < 1) return false;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 5) != 0;
}

// The tile registers are large: Linux keeps them only for processes that have asked.
bool has_amx() {
#if defined(SPARSEGPT_AMX)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned tiles = 1u << 24, bfloat16 = 1u << 22;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & tiles) == 0 || (edx & bfloat16) == 0) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

}  // namespace
#endif

std::vector<Level> available_levels() {
  std::vector<Level> levels = {Level::baseline};
#if defined(SPARSEGPT_X86_64)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    levels.push_back(Level::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
      levels.push_back(Level::avx512);
      const bool has_bytes = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi2");
      if (has_avx512bf16() && has_bytes) {
        levels.push_back(Level::avx512bf16);
        if (has_amx()) levels.push_back(Level::amx);
      }
    }
  }
#endif
  return levels;
}

Level selected_level() {
  const auto levels = available_levels();
  const char* wanted = std::getenv("SPARSEGPT_CPU");
  if (wanted == nullptr || *wanted == '\0') return levels.back();
  std::string names;
  for (Level level : levels) {
    if (std::string(wanted) == level_name(level)) return level;
    names += (names.empty() ? "" : ", ") + std::string(level_name(level));
  }
  throw Error("DEVICE_UNAVAILABLE", "SPARSEGPT_CPU=" + std::string(wanted) + ": this processor has " + names);
}

}  // namespace sparsegpt::cpu
