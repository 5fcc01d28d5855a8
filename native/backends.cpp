// The backends there are.
#include "core/error.h"
#include "core/registry.h"
#include "cpu/cpu_kind.h"
#include "cuda/cuda_kind.h"

namespace sparsegpt {

const std::vector<const BackendKind*>& backend_kinds() {
  static const std::vector<const BackendKind*> kinds = {&cuda_kind(), &cpu_kind()};
  return kinds;
}

const BackendKind& backend_kind(const std::string& name) {
  std::string names;
  for (const BackendKind* kind : backend_kinds()) {
    if (name == kind->name()) return *kind;
    names += (names.empty() ? "" : ", ") + std::string(kind->name());
  }
  throw Error("DEVICE_UNAVAILABLE", "there is no backend '" + name + "'; there are " + names);
}

}  // namespace sparsegpt
