// The solver's layout.
#pragma once

#include <cstdint>

namespace sparsegpt::cpu {

// The solver keeps matrices with their rows along the vector lanes, [column][lane], in tiles of so many rows.
constexpr int64_t lanes = 64;

}  // namespace sparsegpt::cpu
