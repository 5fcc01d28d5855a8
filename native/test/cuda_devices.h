// The CUDA backends that can run here: the GPU where there is one, and the emulation (cuda_emulation/).
#pragma once

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>

#include "core/cuda_loader.h"

namespace sparsegpt::test {

inline std::string emulated_cuda_library() {
  const std::string path = cuda_library_path();
  return path.substr(0, path.rfind('/')) + "/libsparsegpt_cuda_emulated.so";
}

// The emulation is built on Linux only. SPARSEGPT_CUDA_EMULATION=off leaves it out.
inline bool have_emulated_cuda() {
  const char* wanted = std::getenv("SPARSEGPT_CUDA_EMULATION");
  return (wanted == nullptr || std::string(wanted) != "off") && access(emulated_cuda_library().c_str(), F_OK) == 0;
}

// Calls body(name, library) for each.
inline void for_every_gpu(const std::function<void(const std::string&, const std::string&)>& body) {
  static bool told = false;  // once in a run
  const std::string real = cuda_library_path();
  const CudaDevice device = probe_cuda(real);
  if (device.reason.empty()) {
    body(device.name, real);
  } else if (!told) {
    std::printf("  without a GPU (%s): on the emulation only\n", device.reason.c_str());
  }
  told = true;
  if (have_emulated_cuda()) body("emulation", emulated_cuda_library());
}

}  // namespace sparsegpt::test
