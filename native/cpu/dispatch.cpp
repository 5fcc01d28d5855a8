#include "cpu/dispatch.h"

#include <cstdlib>

#if defined(SPARSEGPT_X86_64)
#include <cpuid.h>
#endif

#include "core/error.h"
#include "cpu/kernels/kernels.h"

namespace sparsegpt::cpu {

namespace baseline {
extern const Kernels kernels;
}
#if defined(SPARSEGPT_X86_64)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512bf16 {
extern const Kernels kernels;
}

namespace {

// Not every compiler knows the name. The operating system saves the registers as for the rest of AVX-512.
bool has_avx512bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || eax < 1) return false;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 5) != 0;
}

}  // namespace
#endif

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> levels = {&baseline::kernels};
#if defined(SPARSEGPT_X86_64)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    levels.push_back(&avx2::kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
      levels.push_back(&avx512::kernels);
      if (has_avx512bf16()) levels.push_back(&avx512bf16::kernels);
    }
  }
#endif
  return levels;
}

const Kernels& selected_kernels() {
  const auto levels = available_kernels();
  const char* wanted = std::getenv("SPARSEGPT_CPU");
  if (wanted == nullptr || *wanted == '\0') return *levels.back();
  std::string names;
  for (const Kernels* level : levels) {
    if (std::string(wanted) == level->name) return *level;
    names += (names.empty() ? "" : ", ") + std::string(level->name);
  }
  throw Error("DEVICE_UNAVAILABLE", "SPARSEGPT_CPU=" + std::string(wanted) + ": this processor has " + names);
}

}  // namespace sparsegpt::cpu
