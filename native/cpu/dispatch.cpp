#include "cpu/dispatch.h"

#include <cstdlib>
#include <string>

#if defined(SPARSEGPT_X86_64)
#include <cpuid.h>
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
      if (has_avx512bf16() && has_bytes) levels.push_back(Level::avx512bf16);
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
