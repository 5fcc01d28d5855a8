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

// What the processor says of itself, and which registers the operating system saves. By hand: not every compiler knows all of the
// names, or brings what `__builtin_cpu_supports` needs.
struct Processor {
  unsigned leaf1[4] = {}, leaf7[4] = {}, more7[4] = {};  // eax, ebx, ecx, edx
  unsigned saved = 0;

  Processor() {
    __get_cpuid(1, &leaf1[0], &leaf1[1], &leaf1[2], &leaf1[3]);
    __get_cpuid_count(7, 0, &leaf7[0], &leaf7[1], &leaf7[2], &leaf7[3]);
    if (leaf7[0] >= 1) __get_cpuid_count(7, 1, &more7[0], &more7[1], &more7[2], &more7[3]);
    const bool saves = has(leaf1[2], 27);
    unsigned high = 0;
    if (saves) asm volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  }

  static bool has(unsigned bits, unsigned bit) { return (bits >> bit & 1u) != 0; }
  bool avx2() const {
    const bool fma = has(leaf1[2], 12), f16c = has(leaf1[2], 29);
    return (saved & 0x6u) == 0x6u && fma && f16c && has(leaf7[1], 5);
  }
  bool avx512() const {
    const bool f = has(leaf7[1], 16), dq = has(leaf7[1], 17), bw = has(leaf7[1], 30), vl = has(leaf7[1], 31);
    return (saved & 0xe6u) == 0xe6u && f && dq && bw && vl;
  }
  bool avx512bf16() const {
    const bool vbmi2 = has(leaf7[2], 6), vnni = has(leaf7[2], 11), bf16 = has(more7[0], 5);
    return vbmi2 && vnni && bf16;
  }
};

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
  const Processor processor;
  if (processor.avx2()) {
    levels.push_back(Level::avx2);
    if (processor.avx512()) {
      levels.push_back(Level::avx512);
      if (processor.avx512bf16()) {
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
