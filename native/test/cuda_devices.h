// The CUDA backends that can run here: the GPU where there is one, and the emulation (cuda_emulation/).
#pragma once

#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>

#include "cuda/cuda_kind.h"

namespace sparsegpt::test {

inline std::string real_cuda_library() { return find_library(cuda_library_file); }
inline std::string emulated_cuda_library() {
  const std::string path = real_cuda_library();
  return path.substr(0, path.rfind('/')) + "/libsparsegpt_cuda_emulated.so";
}

inline const BackendLibrary& cuda_library(const std::string& path) {
  // The emulation needs no driver.
  LibraryNeeds needs = cuda_library_needs;
  if (path != real_cuda_library()) needs.before_loading = nullptr;
  return load_backend_library(path, needs);
}
inline std::shared_ptr<Backend> make_cuda_backend(const std::string& path, int index = 0) {
  return std::shared_ptr<Backend>(cuda_library(path).create(index));
}

// The emulation is built on Linux only. SPARSEGPT_CUDA_EMULATION=off leaves it out.
inline bool have_emulated_cuda() {
  const char* wanted = std::getenv("SPARSEGPT_CUDA_EMULATION");
  return (wanted == nullptr || std::string(wanted) != "off") && access(emulated_cuda_library().c_str(), F_OK) == 0;
}

// SPARSEGPT_TEST_CASES=few leaves out large and similar cases, for tools that make kernels a hundred times slower.
inline bool few_cases() {
  const char* wanted = std::getenv("SPARSEGPT_TEST_CASES");
  return wanted != nullptr && std::string(wanted) == "few";
}

// What the emulation does at a test's request.
template <typename Function>
Function* emulation_function(const char* name) {
  void* library = dlopen(emulated_cuda_library().c_str(), RTLD_NOW | RTLD_LOCAL);
  return reinterpret_cast<Function*>(dlsym(library, name));
}

// Calls body(name, library) for each.
inline void for_every_gpu(const std::function<void(const std::string&, const std::string&)>& body) {
  static bool told = false;  // once in a run
  const Availability there_is = cuda_kind().probe();
  if (there_is.reason.empty()) {
    body(there_is.devices[0].name, real_cuda_library());
  } else if (!told) {
    std::printf("  without a GPU (%s): on the emulation only\n", there_is.reason.c_str());
  }
  told = true;
  if (have_emulated_cuda()) body("emulation", emulated_cuda_library());
}

}  // namespace sparsegpt::test
