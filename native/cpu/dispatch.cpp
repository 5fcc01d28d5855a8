#include "cpu/dispatch.h"

#include <cstdlib>

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
#endif

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> levels = {&baseline::kernels};
#if defined(SPARSEGPT_X86_64)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    levels.push_back(&avx2::kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
      levels.push_back(&avx512::kernels);
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
