// What a folder that is to appear complete or not at all needs of the system, and Node does not offer.
#pragma once

#include <string>

namespace sparsegpt {

// Lets two paths change places in one step. False where the system or the file system cannot. Throws WRITE_FAILED.
bool exchange_paths(const std::string& a, const std::string& b);

}  // namespace sparsegpt
