// The CPU among the kinds of backends.
#pragma once

#include "core/registry.h"

namespace sparsegpt {

const BackendKind& cpu_kind();

}  // namespace sparsegpt
