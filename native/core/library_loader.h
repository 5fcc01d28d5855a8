// Finds and loads shared libraries at run time, such as backends, so that programs start where there is no driver or no such
// library.
#pragma once

#include <string>

#include "core/backend_library.h"

namespace sparsegpt {

// Folders in which libraries are looked for after the one of the file that holds this code (the addon, or the test program), in
// the order in which they are added. From any thread.
void add_library_folder(const std::string& folder);

// How the command begins that builds a library where the user is; the library's name follows it. "npm run build:" until another is set.
void set_build_command(const std::string& prefix);

// The library of that file name in the first folder that has it; where none has, the place beside this code.
std::string find_library(const std::string& file);

// What is said of a library that cannot be used, and what is looked for before it is loaded.
struct LibraryNeeds {
  const char* subject;  // "the CUDA backend"
  const char* name;  // what the command that builds it calls it: "cuda"
  const char* build_where;  // "on a machine with the CUDA toolkit"
  const char* libraries;  // what it needs to be loaded: "it needs ..."
  void (*before_loading)() = nullptr;  // once the file is there; throws DEVICE_UNAVAILABLE
};

// Loads a library, once for each path; it stays for good. Returns what its function `entry` does: a struct whose first member says which
// interface it was built with, in the words of `interface`. Throws DEVICE_UNAVAILABLE where it is missing, cannot be loaded, or belongs to
// another version, with what to do.
const void* load_library(const std::string& path, const LibraryNeeds& needs, const char* entry, const char* interface);

// The same of a backend.
const BackendLibrary& load_backend_library(const std::string& path, const LibraryNeeds& needs);

}  // namespace sparsegpt
